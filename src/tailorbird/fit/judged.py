"""How candidates answer the validation images: as networks, as files, and once they are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from tailorbird.errors import ExportError, MeasurementError
from tailorbird.fit.candidates import Candidates, Judgement, Key, Network
from tailorbird.fit.pools import Files, Option, Pools, Standing
from tailorbird.progress import Progress
from tailorbird.targets import PLAIN


class Judged:
    """Judges each candidate once, and each file once, when its turn comes.

    A file in a lower precision answers no better than its network, by and large. So an option is
    taken to be as good as its network until its file is asked for.

    Args:
        candidates: what is judged.
        pools: where options are.
        files: judges candidates in other precisions; as they are in float32 without it.
        progress: told what can't be judged.
    """

    def __init__(
        self, candidates: Candidates, pools: Pools, files: Files | None, progress: Progress
    ) -> None:
        self._candidates, self._pools, self._files = candidates, pools, files
        self._progress = progress
        self._plain: dict[Key, Judgement] = {}
        self._as_files: dict[Option, Judgement] = {}
        self._closed: list[float] = []

    def judge(self, keys: Sequence[Key]) -> None:
        """See to it that candidates have been judged, all that are new at once."""
        new = [key for key in dict.fromkeys(keys) if key not in self._plain]
        if new:
            self._plain |= dict(zip(new, self._candidates.judge(new), strict=True))

    @property
    def reference(self) -> Judgement:
        """How the reference answers."""
        self.judge([self._candidates.reference])
        return self._plain[self._candidates.reference]

    def __getitem__(self, option: Option) -> Judgement:
        """How a judged option answers, before it is trained: as its file, where that is known."""
        return self._as_files.get(option, self._plain[option[1]])

    def seen(self, option: Option) -> bool:
        """Whether an option has been judged as what would be shipped."""
        plain = self._pools[option[0]].place.precision == PLAIN
        return plain or self._files is None or option in self._as_files

    def see(self, option: Option) -> bool:
        """Judge an option as a file; whether that could be done. It leaves its pool if not."""
        assert self._files is not None
        name, key = option
        place = self._pools[name].place
        try:
            with self._progress.task(f"judge a candidate's file in {place.precision}", 1) as shown:
                self._as_files[option] = self._files.judge(place, key, self._plain[key])
                shown.advance()
        except (ExportError, MeasurementError) as error:
            self._progress.say(f"{name}: {self._candidates.label(key)} is left out: {error}")
            del self._pools[name].candidates[key]
            return False
        return True

    def trained(self, option: Option, network: Network, plain: Judgement) -> Judgement:
        """How an option answers once its network is trained.

        Args:
            option: as it would be shipped.
            network: trained.
            plain: how that answers in float32. Where it can't be made a file, that loses what it
                lost before it was trained.
        """
        name, key = option
        place = self._pools[name].place
        if self._files is None or place.precision == PLAIN:
            return plain
        try:
            return self._files.judge(place, key, plain, network)
        except (ExportError, MeasurementError) as error:
            self._progress.say(f"{name}: {self._candidates.label(key)}, trained: {error}")
            before, file = self._plain[key], self[option]
            return Judgement(
                quality=plain.quality + file.quality - before.quality,
                accuracy=plain.accuracy + file.accuracy - before.accuracy,
            )

    def expected(
        self, option: Option, standings: Mapping[Option, Standing], *, sure: bool
    ) -> float:
        """The accuracy that an option is expected to have at the end of its training.

        Args:
            option: judged.
            standings: of those that have been trained.
            sure: nothing is expected of training that has not been done.
        """
        standing, before = standings.get(option), self[option].accuracy
        found = before if standing is None else standing.accuracy
        if sure or option[1] == self._candidates.reference:
            return found
        closes = fmean(self._closed) if self._closed else self._candidates.closes
        left = closes * (1.0 if standing is None else 1.0 - standing.share)
        return found + left * max(0.0, self.reference.accuracy - before)

    def became(self, key: Key, before: float, after: float) -> None:
        """Take in what a candidate's accuracy became by its training."""
        most = self.reference.accuracy
        if key != self._candidates.reference and before < most:
            self._closed.append((after - before) / (most - before))
