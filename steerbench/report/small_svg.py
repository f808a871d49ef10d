"""Fewer bytes for the plots of a page: what matplotlib writes that nothing in the page needs or the eye can see."""

import re
from hashlib import sha256

CLASSES = {
    "fill:none;stroke:var(--line);stroke-width:0.8;stroke-linecap:square": "pg",
    "fill:none;stroke:var(--blue);stroke-opacity:0.45": "pi",
    "fill:none;stroke:var(--muted);stroke-width:0.6;stroke-linecap:round": "pl",
    "fill:none;stroke:var(--muted);stroke-width:0.8;stroke-linejoin:miter;stroke-linecap:square": "pa",
    "font-size:9.5px;text-anchor:middle;fill:var(--ink)": "pk",
    "font-size:10.5px;text-anchor:middle;fill:var(--ink)": "px",
    "font-size:10.5px;text-anchor:end;fill:var(--ink)": "py",
    "fill:var(--blue);stroke:var(--card);stroke-width:0.8": "pm",
    "fill:var(--blue);stroke:var(--blue)": "pb",
}
"""The commonest styles, and the class of the page's style sheet that says the same; other styles stay as they are."""
_NUMBERS = re.compile(r' (d|x|y|transform)="([^"]*)"')
_GROUPS = re.compile(r"(</?g\b[^>]*>)")
_TICK = re.compile(r'<defs><path id="([^"]*)" d="M0 0(?:V3\.5|H-3\.5)"[^>]*/></defs>')


def smaller(text: str) -> str:
    """Return an `<svg>` element that draws the same within a twentieth of a point.

    Gone are the names of parts that nothing refers to, with the groups that were there to be named; ticks, where grid
    lines end; frames to clip by, which our limits leave nothing to do for; line ends, digits beyond the first,
    rotations by nothing, and what the page says of all its plots.
    """
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", text)  # the transparent ground
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = _NUMBERS.sub(lambda found: f' {found[1]}="{_rounded(found[2])}"', text)
    text = re.sub(r' style="([^"]*)"', lambda found: _style(found[1]), text)
    text = re.sub(r'<path id="([^"]*)" d="M0 ([\d.]+)C[^"]*z"', r'<circle id="\1" r="\2"', text)  # all that we draw so
    text = _unwrapped(_without_clips(re.sub(r">\s+<", "><", text)))
    return _gathered(_without_ticks(_renamed(text)))


def _rounded(text: str) -> str:
    """Round coordinates; those of curves, which are small marks, to two digits."""
    digits = 2 if "C" in text else 1
    text = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):z.{digits}f}".rstrip("0").rstrip("."), text)
    if text[:1] != "M":
        return text
    text = re.sub(r"\s*([A-Za-z])\s*", r"\1", text).strip()
    text = re.sub(r"^M(\S+) (\S+)L\1 (\S+)$", r"M\1 \2V\3", text)
    return re.sub(r"^M(\S+) (\S+)L(\S+) \2$", r"M\1 \2H\3", text)


def _style(text: str) -> str:
    """Return a style as a class of the page, or else without spaces and without the font, which is the page's."""
    rules = [rule.replace(": ", ":") for rule in text.split("; ")]
    told = ";".join(rule for rule in rules if not rule.startswith("font-family"))
    return f' class="{CLASSES[told]}"' if told in CLASSES else f' style="{told}"'


def _unwrapped(text: str) -> str:
    """Return a text without groups that have neither a tooltip nor an attribute that draws."""
    found: list[str] = []
    kept: list[bool] = []
    pieces = _GROUPS.split(text)
    for i, piece in enumerate(pieces):
        if piece.startswith("<g"):
            piece = re.sub(r' id="[^"]*"', "", piece)  # noqa: PLW2901 (nothing refers to a group)
            kept.append(piece != "<g>" or pieces[i + 1].startswith("<title>"))
        keep = kept[-1] if piece.startswith("<g") else kept.pop() if piece == "</g>" else True
        found += [piece] * keep
    return "".join(found)


def _renamed(text: str) -> str:
    """Return a text whose ids are short; they differ from those of another plot, because its own told its name."""
    names = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', text))
    short = {name: f"p{sha256(name.encode()).hexdigest()[:9]}" for name in names}
    text = re.sub(r' id="([^"]*)"', lambda found: f' id="{short[found[1]]}"' if found[1] in short else "", text)
    return re.sub(r'(href="|url\()#([^")]+)', lambda found: f"{found[1]}#{short[found[2]]}", text)


def _without_clips(text: str) -> str:
    text = re.sub(r"<defs><clipPath.*?</clipPath></defs>", "", text)
    return re.sub(r' clip-path="[^"]*"', "", text)


def _gathered(text: str) -> str:
    """Return a text with one path for all lines of a kind: below all else, as they lie, or above it for the axes."""
    below = [_path(text, kind) for kind in ("pg", "pi", "pl")]
    above = _path(text, "pa")
    text = re.sub(r'<path d="[^"]*" class="(?:pg|pi|pl|pa)"/>', "", text)
    start = text.index(">") + 1
    return text[:start] + "".join(below) + text[start:].replace("</svg>", f"{above}</svg>")


def _path(text: str, kind: str) -> str:
    found = re.findall(rf'<path d="([^"]*)" class="{kind}"/>', text)
    return f'<path d="{"".join(found)}" class="{kind}"/>' if found else ""


def _without_ticks(text: str) -> str:
    for name in _TICK.findall(text):
        text = re.sub(rf'<use href="#{name}"[^>]*/>', "", text)
    return _TICK.sub("", text)
