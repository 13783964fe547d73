"""A step of a datatrove pipeline that does its share of our tasks; imported where one is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from tessera.data.preparation.executors.local import Work


class DoShare(PipelineStep):
    """Does one list of items for each rank."""

    type = "tessera"
    name = "do a share of the tasks"

    def __init__(self, shares: Sequence[Sequence[Any]], work: Work, errors: str) -> None:
        """Keep what to do.

        Args:
            shares: The items of each rank.
            work: What to do with them.
            errors: Folder that gets the message of an item that the user has to mend.
        """
        super().__init__()
        self.shares, self.work, self.errors = shares, work, errors

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Do the items of a rank."""
        import os

        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            self.work.start()
            for item in self.shares[rank]:
                self.work.do(item)
        except ValueError as error:
            (Path(self.errors) / f"{rank:05}.txt").write_text(str(error))
            raise
        yield from ()
