"""A method of one's own, fitted and used; `pytest examples/write_a_method.py` holds it to the contract."""

from dataclasses import dataclass

from steerbench import FitContext, LanguageModel, Steerer, Steering, fit, generate
from steerbench.contract import parametrize
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.learn import contrast, difference_of_means, middle_layer


@dataclass(frozen=True, kw_only=True)
class Toward(Steerer):
    """Walk `share` of the way from rejected replies to preferred ones, at the output of one block."""

    off = {"share": 0.0}  # with these values the method does nothing
    search = {"share": (0.5, 1.0, 2.0)}  # what tuning draws from

    share: float = 1.0
    layer: int | None = None

    def fit(self, context: FitContext) -> Steering:
        """Take the difference between the means of the two sorts of replies."""
        site = Site("resid_post", middle_layer(context.lm, self.layer))
        way = difference_of_means(contrast(context, site, "response_mean"))
        return Steering(edits=(PlacedEdit(site, Add(way, self.share), "response"),))


@parametrize(Toward, on=["llama"])  # without `on`, in all eleven families
def test_contract(check):
    check()


if __name__ == "__main__":
    lm = LanguageModel.load("testbed")
    polite, rude = "I am happy to help. Knead the dough. Good luck!", "Not again. Knead it. Leave me alone."
    steering = fit(Toward(share=2), lm, [("How do I bake bread?", polite, rude)])
    (reply,) = generate(lm, "How do I grow tomatoes?", steering)
    print(reply.text)
