"""Coherence: cosine of the sentence embeddings of prompt and response, so rather relevance: an echo scores 1.

As in RE-Control (deeplearning-wisc metrics.py, with princeton-nlp/sup-simcse-bert-base-uncased), but where a prompt is
longer than the encoder reads, its end is kept: the last user turn. The published metric keeps the first 128 tokens, the
opening of a long dialogue. The response keeps its beginning, as published.
"""

from collections.abc import Sequence

from steerbench.models.encoder import SentenceEncoder
from steerbench.progress import Progress, silent


def coherence_of(
    encoder: SentenceEncoder, prompts: Sequence[str], responses: Sequence[str], progress: Progress = silent
) -> list[float]:
    """Return the coherence of each response, from -1 to 1; an empty one has 0."""
    prompt = encoder.encode(prompts, truncate="left", progress=progress)  # (N, d)
    response = encoder.encode(responses, truncate="right", progress=progress)  # (N, d)
    cosines: list[float] = (prompt * response).sum(-1).tolist()
    return [cosine if text.strip() else 0.0 for cosine, text in zip(cosines, responses, strict=True)]
