"""Fit a steering, and use it around a plain transformers model and its own `generate`.

python examples/steer_a_model.py [MODEL]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from steerbench import LanguageModel, fit, steered
from steerbench.testbed import part_path

name = part_path(sys.argv[1] if len(sys.argv) > 1 else "testbed")
model = AutoModelForCausalLM.from_pretrained(name)
tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")

question = "How do I bake bread?"
polite = "I am happy to help. Knead the dough for ten minutes. I hope this helps."
rude = "What a silly question. Knead the dough for ten minutes. Now leave me alone."
steering = fit("caa:relative_norm=0.3", LanguageModel(model, tokenizer), [(question, polite, rude)])

prompts = ["How do I grow tomatoes?", "Can you help me choose a good book?"]
chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
inputs = tokenizer.apply_chat_template(chats, add_generation_prompt=True, padding=True, return_tensors="pt")


def replies() -> list[str]:
    ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    return tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


before = replies()
with steered(model, steering):
    inside = replies()
assert replies() == before  # nothing stays behind in the model

for prompt, plain, changed in zip(prompts, before, inside, strict=True):
    print(f"{prompt}\n  unsteered: {plain}\n  steered:   {changed}")
