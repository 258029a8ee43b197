"""One target on its way through a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from tailorbird.fit.candidates import Made
from tailorbird.fit.pools import Choice
from tailorbird.fit.prove import Finished
from tailorbird.report.record import TargetResult
from tailorbird.targets import Target


@dataclass
class Attempt:
    """One target on its way.

    Args:
        target: a place and limits.
        request: hash of all that its result answers to.
        field: candidates to be trained for it; the first is the best as they are.
        choice: the one that it gets; the first of the field until they are trained.
        made: that candidate, trained.
        result: the end of the way.
        module: the network of the result.
        seconds: spent on this target.
    """

    target: Target
    request: str
    field: Sequence[Choice] = ()
    choice: Choice | None = None
    made: Made | None = None
    result: TargetResult | None = None
    module: fx.GraphModule | None = None
    seconds: float = 0.0

    def again(self) -> None:
        """Begin anew: what was chosen will not do."""
        self.field, self.choice, self.made, self.module = (), None, None, None

    def finished(self, base: Mapping[str, float]) -> Finished:
        """What is to be exported and proven; ``base`` are the reference's figures there."""
        assert self.choice is not None
        assert self.made is not None
        return Finished(
            target=self.target,
            place=self.target.place.at(self.choice.precision),
            key=self.choice.key,
            student=self.made,
            base=base,
        )
