"""Lightning's strategy for several ranks that each hold everything."""

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy

from openbook.utils.distributed import raise_if_any_rank_failed


class Ranks(DDPStrategy):
    """DDP whose ranks hear, once they are connected, of one that failed while it set up."""

    def __init__(self, timeout: float):
        """timeout: seconds that ranks wait for one another."""
        # The only buffers are frozen weights.
        super().__init__(broadcast_buffers=False, timeout=timedelta(seconds=timeout))

    def setup_environment(self) -> None:
        super().setup_environment()
        raise_if_any_rank_failed(None)
