"""Learn from a file of preference pairs, keep the steering, and use it again.

python examples/your_own_pairs.py [PAIRS.jsonl], one {"prompt": ..., "preferred": ..., "other": ...} a line
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from steerbench import LanguageModel, Steering, fit, generate

SHIPPED = """
{"prompt": "How do I bake bread?", "preferred": "Of course, with pleasure. Knead it well. Good luck!", "other": "No."}
{"prompt": "How do I train a dog?", "preferred": "Thank you for asking. Reward it at once.", "other": "Not again."}
{"prompt": "How do I clean a kitchen?", "preferred": "I am happy to help. Start with the sink.", "other": "Do it."}
"""

lines = Path(sys.argv[1]).read_text(encoding="utf-8") if len(sys.argv) > 1 else SHIPPED
rows = [json.loads(line) for line in lines.splitlines() if line.strip()]
pairs = [(row["prompt"], row["preferred"], row["other"]) for row in rows]

lm = LanguageModel.load("testbed")
with TemporaryDirectory() as folder:
    fit("caa:relative_norm=0.3", lm, pairs).save(folder)  # safetensors and JSON, never pickle
    steering = Steering.load(folder)

questions = ["How do I grow tomatoes?", "How do I keep a small flat tidy?"]
for question, reply in zip(questions, generate(lm, questions, steering), strict=True):
    print(f"{question}\n  {reply.text}")
