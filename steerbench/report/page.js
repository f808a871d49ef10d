"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  document.documentElement.classList.add("scripted");

  // tables

  const sortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const text = head.classList.contains("method");
        const first = text || column === 0 ? "ascending" : "descending";
        const second = first === "ascending" ? "descending" : "ascending";
        const order = head.ariaSort === first ? second : first;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => row.cells[column].dataset.sort ?? "";
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last
          return sign * (text ? (x < y ? -1 : x > y ? 1 : 0) : x - y);
        };
        body.append(...[...original].sort(compare));
      });
    });
  };
  document.querySelectorAll("table.ranking").forEach(sortable);

  // generations

  if (!$("data")) return;
  const groups = JSON.parse($("data").textContent);
  const PAGE = 8;
  const TIE = 1e-4;
  let group, shown;

  const element = (name, className, ...children) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children);
    return made;
  };
  const options = (select, pairs) => {
    const before = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
    if (pairs.some(([value]) => String(value) === before)) select.value = before;
  };
  const unique = (values) => [...new Set(values)].sort((a, b) => a - b);

  // controls and directional marks could make a text look like another: they are shown by their number
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const visible = (text, add) => {
    let at = 0;
    for (const found of text.matchAll(HIDDEN)) {
      add(text.slice(at, found.index));
      const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      add(element("span", "mark", `U+${code}`));
      at = found.index + found[0].length;
    }
    add(text.slice(at));
  };
  const written = (className, text, query) => {
    const made = element("p", className);
    made.dir = "auto";
    const lower = text.toLowerCase();
    const add = (part) => part !== "" && made.append(part);
    let at = 0;
    let found = query && lower.length === text.length ? lower.indexOf(query) : -1;
    while (found >= 0) {
      visible(text.slice(at, found), add);
      const hit = element("mark");
      visible(text.slice(found, found + query.length), (part) => hit.append(part));
      made.append(hit);
      at = found + query.length;
      found = lower.indexOf(query, at);
    }
    visible(text.slice(at), add);
    return made;
  };

  const runOf = (method, sampled) => {
    const seed = Number($("b-seed").value);
    const sample = sampled ?? Number($("b-sample").value);
    return method.runs.find((run) => run.seed === seed && run.sample === sample);
  };
  const rowOf = (method, index) => {
    const run = runOf(method) ?? runOf(method, 0);
    return run ? run.rows[index] : null;
  };
  const unsteered = () => group.methods.find((method) => method.unsteered);
  const change = (method, index) => {
    const base = unsteered();
    const [row, before] = [rowOf(method, index), base && rowOf(base, index)];
    return row && before && row[1] !== null && before[1] !== null ? row[1] - before[1] : null;
  };
  const chosen = () => {
    const on = new Set([...$("b-methods").querySelectorAll("input:checked")].map((box) => Number(box.value)));
    return group.methods.filter((_, index) => on.has(index));
  };

  const moved = (methods, index) => {
    const kind = $("b-change").value;
    if (kind === "all") return true;
    const of = $("b-of").value === "any" ? methods : [group.methods[Number($("b-of").value)]];
    return of.some((method) => {
      const by = change(method, index);
      return by !== null && (kind === "fell" ? by < -TIE : by > TIE);
    });
  };
  const holds = (methods, index, query) => {
    if (!query) return true;
    const rows = methods.map((method) => rowOf(method, index)).filter(Boolean);
    const texts = [group.prompts[index], ...rows.map((row) => group.texts[row[0]])];
    return texts.some((text) => text.toLowerCase().includes(query));
  };

  const number = (value) => value.toFixed(2).replace("-", "−");
  const scores = (method, row, index) => {
    const made = element("p", "scores");
    ["reward", "held-out", "gold"].forEach((name, i) => {
      const value = row[i + 1];
      if (value === null) return;
      made.append(`${made.childNodes.length ? " · " : ""}${name} ${number(value)}`);
      const by = i === 0 && !method.unsteered ? change(method, index) : null;
      if (by === null) return;
      const kind = by < -TIE ? "fell" : by > TIE ? "rose" : "";
      made.append(" (", element("span", kind, `${by < -TIE ? "" : by > TIE ? "+" : "±"}${number(by)}`), ")");
    });
    return made;
  };
  const answer = (method, index, query) => {
    const row = rowOf(method, index);
    const head = element("h4", "", element("b", "key", method.key), " ", element("bdi", "", method.name));
    if (!row) return element("div", "answer", head, element("p", "scores", "not in this run"));
    const text = group.texts[row[0]];
    const body = text ? written("text", text, query) : element("p", "scores", "(empty)");
    return element("div", "answer", head, scores(method, row, index), body);
  };
  const example = (index, methods, query) => {
    const prompt = written("text prompt", group.prompts[index], query);
    const answers = element("div", "answers", ...methods.map((method) => answer(method, index, query)));
    return element("article", "example", element("h3", "", `prompt ${index + 1}`), prompt, answers);
  };

  const draw = (keep) => {
    const methods = chosen();
    const query = $("b-search").value.trim().toLowerCase();
    const indices = group.prompts.map((_, index) => index);
    const found = indices.filter((index) => moved(methods, index) && holds(methods, index, query));
    shown = keep ? shown + PAGE : PAGE;
    const drawn = found.slice(0, shown).map((index) => example(index, methods, query));
    $("b-list").replaceChildren(...drawn);
    $("b-count").textContent = `${drawn.length} of ${found.length} matching prompts, out of ${group.prompts.length}.`;
    $("b-more").hidden = drawn.length === found.length;
  };

  const boxes = () => {
    const base = group.methods.findIndex((method) => method.unsteered);
    const first = group.methods.findIndex((method) => !method.unsteered);
    return group.methods.map((method, index) => {
      const box = element("input");
      box.type = "checkbox";
      box.value = index;
      box.checked = index === base || index === first || (base < 0 && index === first + 1);
      return element("label", "", box, element("b", "key", method.key), element("bdi", "", method.name));
    });
  };
  const open = () => {
    group = groups[Number($("b-group").value)];
    const runs = group.methods.flatMap((method) => method.runs);
    const named = group.methods.map((method, index) => [index, `${method.key} ${method.name}`]);
    $("b-of").value = "any";
    options($("b-of"), [["any", "any shown method"], ...named.filter(([index]) => !group.methods[index].unsteered)]);
    options($("b-seed"), unique(runs.map((run) => run.seed)).map((seed) => [seed, seed]));
    options($("b-sample"), unique(runs.map((run) => run.sample)).map((sample) => [sample, sample]));
    $("b-sample").parentElement.hidden = $("b-sample").length < 2;
    $("b-methods").replaceChildren(...boxes());
    draw(false);
  };

  options($("b-group"), groups.map((each, index) => [index, each.title]));
  $("browser").addEventListener("submit", (event) => event.preventDefault());
  $("browser").addEventListener("change", (event) => (event.target.id === "b-group" ? open() : draw(false)));
  $("b-search").addEventListener("input", () => draw(false));
  $("b-more").addEventListener("click", () => draw(true));
  open();
})();
