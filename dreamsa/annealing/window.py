"""When a rule applies: windows of optimizer steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Optimizer steps start <= step < start + length, repeated every `period` steps if given."""

    start: int = 0
    length: int = 1
    period: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 0:
            raise ValueError(
                f"A window needs start >= 0 and length >= 0, got {self.start} and {self.length}."
            )
        if self.period is not None and self.period < max(self.length, 1):
            raise ValueError(
                f"A window of {self.length} steps would overlap itself every {self.period} steps."
            )

    def is_active(self, step: int) -> bool:
        return 0 <= self._phase(step) < self.length

    def opens_at(self, step: int) -> bool:
        """Whether `step` is the first step of a window."""
        return self.length > 0 and self._phase(step) == 0

    def closes_at(self, step: int) -> bool:
        """Whether `step` is the first step after a window."""
        return self.is_active(step - 1) and (not self.is_active(step) or self.opens_at(step))

    def _phase(self, step: int) -> int:
        """Steps since the window last opened; negative before the first."""
        since = step - self.start
        return since if self.period is None or since < 0 else since % self.period
