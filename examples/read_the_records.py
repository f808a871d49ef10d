"""Rank records, and read the responses of the best method beside the unsteered ones.

python examples/read_the_records.py [FOLDER], by default what this repository keeps of the testbed
"""

import sys
from pathlib import Path

from steerbench import Store, leaderboard

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "results" / "testbed"
records = Store(folder).records()

table = leaderboard(records)
for task, rows in table.groupby("task"):
    print(f"\n{task}")
    for row in rows.itertuples():
        gain = "" if row.method == "unsteered" else f"{row.reward_gain:+.2f} of reward, {row.kl:.3f} nats per token"
        print(f"  {row.rank}  {row.method:45} {gain}")

best = table["method"].iloc[0]
print(f"\nThe first prompt of {table['task'].iloc[0]}, and what it was answered:")
for record in records:
    if record.labels["task"] == table["task"].iloc[0] and record.method in (best, "unsteered"):
        row = record.examples.iloc[0]
        print(f"{row['prompt']}\n  {record.method}: {row['response']}")
