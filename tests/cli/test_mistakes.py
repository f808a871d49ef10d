"""Every command with one mistake each: what it answers, in whole lines, before anything heavy is loaded."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_records import make
from typer.testing import Result

from steerbench import Store
from steerbench.cli import application
from steerbench.plugins import registry
from steerbench.plugins.template import METHOD, TASK

Cli = Callable[..., Result]

ANSWERS = {
    # run
    "run --methods ca": "unknown method 'ca'. Did you mean 'caa'? Known: {methods}. A file of yours: --plugin FILE.",
    "run --methods caa,hh_rlhf": "'hh_rlhf' is a task and no method; tasks are given with --task.",
    "run --methods caa: ": "cannot read 'caa:': expected the name of a hyperparameter, found the end at column 5.",
    "run --methods 'caa,caa strength=2'": "cannot read 'caa,caa strength=2': expected ',', '+', ':' or the end (put a "
    "value with special signs in double quotes), found '=' at column 17.",
    "run --methods caa:strength=1:strength=2": "cannot read 'caa:strength=1:strength=2': expected each hyperparameter "
    "once, found 'strength' at column 16.",
    "run --methods caa:strength=x": "caa:strength must be a finite number, not 'x'.",
    "run --methods caa:strenth=2": "unknown hyperparameter of 'caa' 'strenth'. Did you mean 'strength'? Known: layer, "
    "pairs, pool, relative_norm, scope, strength.",
    "run --methods caa --sweep --tune 2": "--sweep measures every strength, so nothing is left to set; drop --tune and "
    "--match-kl.",
    "run --tasks sph": "unknown task 'sph'. Did you mean 'shp'? Known: {tasks}. A file of yours: --plugin FILE.",
    "run --tasks caa": "'caa' is a method and no task; methods are given with --methods.",
    "run --tasks hh_rlhf:min_ratio=2": "unknown setting of 'hh_rlhf' 'min_ratio'. Known: criterion.",
    "run --tasks shp:min_ratio=x": "shp:min_ratio must be a finite number of 1 or more, not 'x'.",
    "run --seeds 3-1": "--seeds '3-1' must be whole numbers separated by commas, or ranges: 0,1,2 or 0-2; 3 is the one "
    "seed 3.",
    "run --seeds 0 --seeds 1": "--seeds is given twice; give it once.",
    "run --methods caa:layer=-1": "caa:layer must be a whole number of 0 or more, or {share}, or none, not '-1'.",
    "run --methods caa:layer=1.0": "caa:layer must be a whole number of 0 or more, or {share}, or none, not '1.0'.",
    "run --methods caa:layer=5": "caa:layer must be a whole number from 0 to 4, or {share}, or none, "
    "not 5 on testbed/lm.",
    "run --methods iti:n_heads=0": "iti:n_heads must be a whole number of 1 or more, or a finite number above 0 and "
    "below 1, not '0'.",
    "run --methods iti:n_heads=31 --model testbed": "iti:n_heads must be a whole number from 1 to 30, or a finite "
    "number above 0 and below 1, not 31 on testbed/lm.",
    "run --methods static_prompt+iti:alpha=nan": "iti:alpha must be a finite number, not 'nan'.",
    "run --sweep --methods caa+re_control:n_steps=-1": "re_control:n_steps must be a whole number of 0 or more, or "
    "none, not '-1'.",
    "run --dry-run --methods best_of_n:n=0": "best_of_n:n must be a whole number from 1 to 64, not '0'.",
    "run --dry-run --methods reft:rank=193": "reft:rank must be a whole number from 1 to 192, not 193 on testbed/lm.",
    "run --methods re_control:step_size=1:relative_norm=1": "step_size and relative_norm exclude each other; give one "
    "of them.",
    "run --tasks shp:min_ratio=0.5": "shp:min_ratio must be a finite number of 1 or more, not '0.5'.",
    "run number.toml": "number.toml: n-examples = 0: Input should be greater than or equal to 1.",
    "run type.toml": "type.toml: seeds = \"x\": 'x' must be whole numbers separated by commas, or ranges: 0,1,2 or "
    "0-2; 3 is the one seed 3.",
    "run range.toml": 'range.toml: methods = "best_of_n:n=65": best_of_n:n must be a whole number from 1 to 64, not '
    "'65'.",
    "run range.toml --methods best_of_n:n=-1": "best_of_n:n must be a whole number from 1 to 64, not '-1'.",
    "run --match-kl 0": "match_kl is 0.0; it must be above 0, in nats per token, such as 0.1.",
    "run --objective rewrd": "unknown objective 'rewrd'. Did you mean 'reward'? Known: reward, sum.",
    "run --objective sum": "objective 'sum' is for tuning; add --tune 8, and drop --match-kl.",
    "run --n-samples 2": "n_samples is 2; it must be 1 or more, and more than 1 needs a temperature above 0: greedy "
    "responses are all alike.",
    "run --top-p 2 --temperature 1": "generation settings are out of range: top_p 2.0 (above 0, up to 1).",
    "run --thinking maybe": "unknown thinking 'maybe'. Known: keep, off, strip.",
    "run --dtype int8": "unknown dtype 'int8'. Known: auto, bfloat16, float16, float32.",
    "run --device gpu": "device 'gpu' is not there. Here: auto, cpu.",
    "run --model ./nowhere": "there is no model folder at './nowhere'; check the path.",
    "run --model folder": "'folder' is not a model folder: it has no config.json; check the path.",
    "run --model notes.txt": "'notes.txt' is a file; give the folder of a model, a .gguf file, or a name on the Hub.",
    "run --out notes.txt": "cannot write to notes.txt: File exists; choose another folder with --out and run the same "
    "command again. Finished records are kept.",
    "run --plugin nowhere.py": "plugin {here}/nowhere.py does not exist; check the path.",
    "run --plugin folder": "plugin {here}/folder is not a Python file; give the path of a .py file.",
    "run --model ''": "--model is empty; give it a value, or leave it out.",
    "run nowhere.toml": "nowhere.toml is no study file: No such file or directory. A run writes one into --out; names "
    "of methods go behind --methods.",
    "run folder": "folder is no study file: Is a directory. A run writes one into --out; names of methods go behind "
    "--methods.",
    "run --dry-run --methods ca": "unknown method 'ca'. Did you mean 'caa'? Known: {methods}. A file of yours: "
    "--plugin FILE.",
    "run --methods caa --over layer": "--over 'layer' must be a setting and its values, such as layer=0,2,4.",
    "run --methods caa --over depth=1,2": "no method of 'caa' has a setting 'depth' to go over; see `steerbench list`.",
    "run --methods caa --over layer=0,9": "caa:layer must be a whole number from 0 to 4, or {share}, or none, not 9 on "
    "testbed/lm.",
    "run --log wanbd": "unknown tracker 'wanbd'. Did you mean 'wandb'? Known: mlflow, trackio, wandb.",
    "run --dry-run --out notes.txt": "notes.txt is a file; choose another folder with --out.",
    # generate
    "generate --methods ca Hi": "unknown method 'ca'. Did you mean 'caa'? Known: {methods}. A file of yours: --plugin "
    "FILE.",
    "generate --methods nudging:gamma=1.5 Hi": "nudging:gamma must be a finite number from 0 to 1, not '1.5'.",
    "generate --methods repe:last_layer=7 Hi": "repe:last_layer must be a whole number from 0 to 4, or none, not 7 on "
    "testbed/lm.",
    "generate --methods caa --strength 1,a Hi": "--strength '1,a' must be numbers separated by commas, such as 1,2,4 "
    "or 0.5.",
    "generate --methods caa --strength '' Hi": "--strength is empty; give one or more, separated by commas, such as "
    "1,2,4.",
    "generate --methods caa --model notes.txt Hi": "'notes.txt' is a file; give the folder of a model, a .gguf file, "
    "or a name on the Hub.",
    "generate --methods caa --task shp,hh_rlhf Hi": "task 'shp,hh_rlhf' is more than one; give each a run of its own.",
    "generate --methods caa ''": "prompts has an empty text; put something between the quotes.",
    # latency
    "latency --methods ''": "cannot read '': expected the name of a method, found the end at column 1.",
    "latency --methods ca": "unknown method 'ca'. Did you mean 'caa'? Known: {methods}. A file of yours: --plugin "
    "FILE.",
    "latency --methods deal:beams=0": "deal:beams must be a whole number from 1 to 64, not '0'.",
    "latency --methods caa:layer=5": "caa:layer must be a whole number from 0 to 4, or {share}, or none, "
    "not 5 on testbed/lm.",
    "latency --batch-sizes 1,x": "--batch-sizes '1,x' must be whole numbers above 0, separated by commas: 1,8,32.",
    "latency --prompt-tokens 0": "--prompt-tokens '0' must be whole numbers above 0, separated by commas: 32,128,256.",
    "latency --config llama-3-8b --model x": "--config makes a model of its own; leave out --model.",
    "latency --out notes.txt": "cannot write to notes.txt: File exists; choose another folder with --out and run the "
    "same command again. Finished records are kept.",
    # leaderboard, compare, agree, across, report, power, pack
    "leaderboard nowhere": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "leaderboard folder": "there are no records in folder; `steerbench run --out FOLDER` makes some.",
    "leaderboard notes.txt": "notes.txt is no folder; `steerbench run --out FOLDER` makes one with records.",
    "leaderboard runs --rows 3": "--rows is for a table in Markdown; say which file it goes to: --markdown FILE.",
    "leaderboard runs --csv a.csv --csv b.csv": "--csv is given twice; give it once.",
    "leaderboard runs --csv folder": "cannot write folder: Is a directory; choose another file.",
    "compare caa iti nowhere": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "compare caa iti folder": "there are no records in folder; `steerbench run --out FOLDER` makes some.",
    "compare caa iti runs": "unknown method in these records 'iti'. Known: caa, unsteered.",
    "agree nowhere runs": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "agree runs --metric gold": "it takes two tables to agree, and 0 of these have gains of gold; give folders of two "
    "studies, or of two tasks, or another --metric.",
    "agree runs runs --metric gild": "unknown metric 'gild'. Did you mean 'gold'? Known: gold, "
    "held_out_reward, reward.",
    "across nowhere runs": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "across runs --metric gild": "unknown metric 'gild'. Did you mean 'gold'? Known: gold, held_out_reward, reward.",
    "across runs --metric gold": "none of these has gains of gold; give other folders, or another --metric.",
    "report nowhere": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "report runs --out folder": "cannot write folder: Is a directory; choose another file.",
    "report runs --out page.pdf": "page.pdf would hold HTML; give it a name that ends in .html.",
    "report runs --plot plot.png": "plot.png would hold SVG; give it a name that ends in .svg.",
    "verdicts nowhere.toml": "cannot read nowhere.toml: No such file or directory.",
    "verdicts notes.txt": "cannot read notes.txt: Expected '=' after a key in a key/value pair (at line 1, column 9).",
    "power nowhere": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "power runs --metric rewrd": "unknown metric 'rewrd'. Did you mean 'reward'? Known: {metrics}.",
    "power runs --difference 0": "the difference is 0.0; it must be a number above 0, in units of reward.",
    "power runs --power 80": "power 80.0 and alpha 0.05 must lie between 0 and 1, and power above alpha.",
    "power runs --alpha 0": "power 0.8 and alpha 0.0 must lie between 0 and 1, and power above alpha.",
    "pack nowhere out": "nowhere is not there; `steerbench run --out FOLDER` makes one with records.",
    "pack runs runs": "runs is there already and holds something; choose a new folder.",
    "pack runs notes.txt": "notes.txt is there already and holds something; choose a new folder.",
    # judge
    "judge runs --endpoint localhost --judge-model x": "--endpoint must be a plain URL such as "
    "https://api.openai.com/v1 or http://localhost:8000/v1, without a name, a password or a query.",
    "judge nowhere --endpoint http://x/v1 --judge-model x": "nowhere is not there; `steerbench run --out FOLDER` makes "
    "one with records.",
    "judge runs --endpoint '' --judge-model x": "--endpoint is empty; give it a value, or leave it out.",
    # check, list, new
    "check ca": "unknown method 'ca'. Did you mean 'caa'? Known: {methods}. A file of yours: --plugin FILE.",
    "check nowhere.py": "plugin {here}/nowhere.py does not exist; check the path.",
    "check hh_rlhf": "'hh_rlhf' is a task and no method; give the name of a method.",
    "check caa,iti": "'caa,iti' are 2 methods; check one at a time, or compose them with '+'.",
    "check t.py": "t.py is a task; the contract suite checks methods.",
    "check caa --family lama": "unknown family 'lama'. Did you mean 'llama'? Known: falcon, gemma2, gpt2, gpt_neo, "
    "gpt_neox, llama, mistral, opt, phi3, qwen2, qwen3.",
    "check cards:alpha=-0.1": "cards:alpha must be a finite number from 0 to 1, not '-0.1'.",
    "list rtd:share=1": "rtd:share must be a finite number from 0 to below 1, not '1'.",
    "list cae": "unknown method or task 'cae'. Did you mean 'caa'? Known: {all}. A file of yours: --plugin FILE.",
    "list --plugin nowhere.py": "plugin {here}/nowhere.py does not exist; check the path.",
    "new method caa": "caa exists; choose another name.",
    "new method my_method.py": "'my_method.py' cannot name a method; use letters, digits and underscores, a letter "
    "first, and no word of Python's own, such as class.",
    "new task t": "t.py exists; choose another name.",
    # export, import
    "export ca out": "unknown method 'ca'. Did you mean 'caa'? Known: {methods}. A file of yours: --plugin FILE.",
    "export caa,iti out": "'caa,iti' are 2 methods; export one at a time.",
    "export ode_steer:time=-1 out": "ode_steer:time must be a finite number of 0 or more, not '-1'.",
    "export caa:layer=5 out": "caa:layer must be a whole number from 0 to 4, or {share}, or none, not 5 on testbed/lm.",
    "export caa notes.txt": "notes.txt exists already; give a new name.",
    "export caa out --format foo": "unknown format 'foo'. Known: folded, gguf, lm-eval, safetensors, steering, "
    "steering-vectors.",
    "import nowhere.pt out": "there is no file nowhere.pt; check the path.",
    "import notes.txt out": "notes.txt is of no known kind; vectors are in .gguf, .pt, .pth, .safetensors files.",
    "import nonsense.pt out": "nonsense.pt holds more than tensors, or is damaged; write it as safetensors.",
    "import nonsense.safetensors out": "nonsense.safetensors is no safetensors file (Error while deserializing header: "
    "header too large); write it again.",
    "import folder out": "folder holds no saved steering that can be read (FileNotFoundError(2, 'No such file or "
    "directory')); give a folder that `steerbench export` or `Steering.save` wrote.",
    # reward, testbed
    "reward check ./nowhere": "there is no model folder at './nowhere'; check the path.",
    "reward check a/b --task caa": "'caa' is a method and no task; give the name of a task.",
    "reward train --backbone ./nowhere --out r": "there is no model folder at './nowhere'; check the path.",
    "reward train --backbone testbed --task sph --out r": "unknown task 'sph'. Did you mean 'shp'? Known: {tasks}. A "
    "file of yours: --plugin FILE.",
    "reward train --backbone testbed --data nowhere --out r": "no data at nowhere: No such file or directory. Check "
    "the path given to --data.",
    "reward train --backbone testbed --out notes.txt": "cannot write notes.txt: File exists; choose another --out.",
    "testbed info nowhere": "there is no testbed at 'nowhere'; `steerbench testbed build --out DIR` makes one.",
    "testbed verify folder": "there is no testbed at 'folder'; `steerbench testbed build --out DIR` makes one.",
    "testbed build --out runs": "{here}/runs is not empty; give a new folder with --out.",
    "testbed build --out w --device gpu": "device 'gpu' is not there. Here: auto, cpu.",
}
"""A command with one mistake -> the one line that answers it, behind `error: `."""

USAGE = {
    "rnu": "No such command 'rnu'. Did you mean 'run'?",
    "run --metods caa": "No such option: --metods (Possible options: --method, --methods, --seeds)",
    "run --n-examples 0": "Invalid value for '--n-examples': Input should be greater than or equal to 1",
    "run --threads x": "Invalid value for '--threads': Input should be a valid integer, unable to parse string as an "
    "integer",
    "generate": "Missing argument 'prompts'.",
    "generate --seed -1 Hi": "Invalid value for '--seed': Input should be greater than or equal to 0",
    "latency --rounds 0": "Invalid value for '--rounds': Input should be greater than or equal to 1",
    "latency --batch-size 3": "No such option: --batch-size (Possible options: --batch-sizes)",
    "leaderboard": "Missing argument 'folders'.",
    "leaderboard runs --rows 0": "Invalid value for '--rows': Input should be greater than or equal to 1",
    "report runs --examples -1": "Invalid value for '--examples': Input should be greater than or equal to 0",
    "report runs --csv x.csv": "No such option: --csv (Possible options: --claims)",
    "power runs --difference x": "Invalid value for '--difference': Input should be a valid number, unable to parse "
    "string as a number",
    "pack runs": "Missing argument 'packed'.",
    "judge runs": "Missing option '--endpoint'.",
    "check": "Missing argument 'file'.",
    "list caa iti": "Got unexpected extra argument(s) (iti)",
    "list --lon": "No such option: --lon (Possible options: --long, --plugin)",
    "new methode x": "No such command 'methode'. Did you mean 'method'?",
    "new task a b": "Got unexpected extra argument(s) (b)",
    "export caa": "Missing argument 'out'.",
    "import x.gguf": "Missing argument 'folder'.",
    "reward tarin": "No such command 'tarin'. Did you mean 'train'?",
    "reward check": "Missing argument 'rewards'.",
    "reward train": "Missing option '--backbone'.",
    "testbed infos": "No such command 'infos'. Did you mean 'info'?",
    "testbed build": "Missing option '--out'.",
}
"""The same for mistakes that come with the usage: its last line, behind `Error: `."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a mistake may meet: records, a folder, a text, files that hold nonsense, two plugins."""
    place = tmp_path_factory.mktemp("here")
    (place / "folder").mkdir()
    for name in ("notes.txt", "nonsense.pt", "nonsense.safetensors"):
        (place / name).write_text("nothing that anybody reads")
    (place / "number.toml").write_text("n-examples = 0\n")
    (place / "type.toml").write_text('seeds = "x"\n')
    (place / "range.toml").write_text('methods = "best_of_n:n=65"\n')
    (place / "m.py").write_text(METHOD)
    (place / "t.py").write_text(TASK)
    for method in ("unsteered", "caa"):
        (place / "runs").mkdir(exist_ok=True)
        Store(place / "runs").write(make(method))
    return place


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def known(here: Path) -> dict[str, str]:
    """Return the lists of names that answers end with, and the folder."""
    from steerbench.records.columns import METRIC_COLUMNS

    methods, tasks = registry.names("methods"), registry.names("tasks")
    lists = {
        "methods": methods,
        "tasks": tasks,
        "all": [*methods, *tasks, "methods", "tasks", "all"],
        "metrics": [column.name for column in METRIC_COLUMNS],
    }
    return {
        "here": str(here),
        "share": "a finite number from 0 to below 1",
        **{name: ", ".join(sorted(words)) for name, words in lists.items()},
    }


@pytest.mark.parametrize("command", ANSWERS)
def test_a_mistake_is_answered_in_one_line(cli: Cli, here: Path, command: str) -> None:
    before = files(here)
    done = cli(*shlex.split(command))
    assert done.stderr == f"error: {ANSWERS[command].format(**known(here))}\n"
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert "written" not in done.stdout
    assert files(here) == before


@pytest.mark.parametrize("command", USAGE)
def test_a_mistake_in_the_usage_is_answered_with_it(cli: Cli, here: Path, command: str) -> None:
    done = cli(*shlex.split(command))
    usage, try_help, empty, error = done.stderr.splitlines()
    assert usage.startswith("Usage: steerbench ")
    assert try_help.endswith(" --help' for help.")
    assert (empty, error) == ("", f"Error: {USAGE[command]}")
    assert done.exit_code == 2


def test_an_unknown_name_is_answered_without_torch() -> None:
    commands = [
        command
        for command, answer in ANSWERS.items()
        if (answer.startswith("unknown method") and "these records" not in answer) or "; give it with" in answer
    ]
    assert {command.split()[0] for command in commands} >= {"run", "generate", "latency", "check", "export", "list"}
    code = (
        "import shlex, sys\nfrom typer.testing import CliRunner\nfrom steerbench.cli import app\n"
        "print(*(CliRunner().invoke(app, shlex.split(command)).exit_code for command in sys.argv[1:]))\n"
        "print(*{'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=True)
    assert done.stdout == f"{' '.join('2' for _ in commands)}\n\n"


def test_every_command_is_given_a_mistake() -> None:
    from typer.main import get_command

    groups = vars(get_command(application.app))["commands"]
    words = {
        f"{name} {inner}" if hasattr(group, "commands") else name
        for name, group in groups.items()
        for inner in getattr(group, "commands", [""])
    }
    assert [word for word in sorted(words) if not any(f"{c} ".startswith(f"{word} ") for c in ANSWERS)] == []
