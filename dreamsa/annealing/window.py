"""When: windows of optimizer steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """The steps start <= step < start + length, again every `period` steps where one is given. Counted in optimizer steps."""

    start: int = 0
    length: int = 1
    period: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 0:
            raise ValueError(f"A window needs start >= 0 and length >= 0, got start {self.start}, length {self.length}.")
        if self.period is not None and self.period < max(self.length, 1):
            raise ValueError(f"A window of length {self.length} cannot repeat every {self.period} steps: it would overlap itself.")

    def is_active(self, step: int) -> bool:
        return 0 <= self._phase(step) < self.length

    def opens_at(self, step: int) -> bool:
        """Whether `step` is the first of a window."""
        return self.length > 0 and self._phase(step) == 0

    def closes_at(self, step: int) -> bool:
        """Whether `step` is the first after a window."""
        if self.length == 0 or step == 0:
            return False
        return self.is_active(step - 1) and (not self.is_active(step) or self.opens_at(step))

    def _phase(self, step: int) -> int:
        """Steps since the window last opened; negative before the first."""
        since = step - self.start
        return since if self.period is None or since < 0 else since % self.period
