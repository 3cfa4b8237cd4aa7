"""Student to bundle: plan, trace, write, measure, seal. Needs the export extra.

The bundle is put together in a hidden sibling folder and renamed at the end: it is whole or absent. An interrupted build
leaves that folder; the next build of the same student with the same options takes over the graphs that were finished.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec

from deploy.build.budget import Destination, Sizes, check_budget, check_disk, estimate, estimated_disk_bytes, fitted
from deploy.build.describe import describe, write_small_files
from deploy.build.draft import Draft, WrittenGraph
from deploy.build.format import model_format
from deploy.build.measure import with_parity
from deploy.build.plan import Plan, plan
from deploy.build.request import BuildRequest
from deploy.build.resume import Done, can_resume, finished, forget, mark_finished, resume_key
from deploy.bundle.folder import Bundle
from deploy.bundle.seal import BundleBusyError, locked, partial_folder, remove_strangers, seal
from deploy.errors import Complaint, InputError
from deploy.interrupts import interruptible
from exporters.layouts.spec import GraphSpec
from exporters.student.student import Student
from quantization.folders import claim_folder, real_place, remove_empty, remove_tree


class Reporter(Protocol):
    """Told how the build goes; the command line draws bars of it."""

    def stage(self, text: str) -> None:
        """A new stage begins."""

    def graph(self, name: str, total_bytes: int) -> Callable[[int], None]:
        """A graph's weights begin to be written; returns what takes the number of bytes just written."""

    def note(self, text: str) -> None:
        """Something that the user should know, in a line."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, text: str) -> None:
        """Nothing."""

    def graph(self, name: str, total_bytes: int) -> Callable[[int], None]:
        """Nothing."""
        return lambda written: None

    def note(self, text: str) -> None:
        """Nothing."""


def build(request: BuildRequest, reporter: Reporter | None = None) -> Bundle:
    """Build a bundle.

    Args:
        request: what to build.
        reporter: told how it goes.

    Raises:
        InputError: the request cannot be fulfilled; nothing is left behind.
        CheckFailed: a graph does not compute what diffusers computes; no bundle is made.
    """
    reporter = reporter or Silent()
    request = replace(request, output=real_place(request.output))
    reporter.stage("opening the student")
    settled = fitted(plan(request))
    for note in settled.notes:
        reporter.note(note)
    partial = partial_folder(request.output)
    new_folders = [folder for folder in partial.parents if not folder.exists()]  # innermost first
    claim_folder(partial)
    try:
        with locked(partial), interruptible():
            if not can_resume(partial):  # else part of it is on the disk already
                check_disk(partial, estimated_disk_bytes(settled, estimate(settled)))
            return _Build(settled, partial, reporter).run()
    except Exception as error:  # an interruption is none: then the finished graphs stay for the next build
        if not isinstance(error, BundleBusyError):
            remove_tree(partial)
            remove_empty(new_folders)
        if isinstance(error, OSError):
            complaint = Complaint(str(error.filename or partial), error.strerror or str(error))
            raise InputError("The bundle cannot be written.", [complaint], "free some space or build elsewhere") from error
        raise


class _Build:
    """One build in its partial folder."""

    def __init__(self, settled: Plan, partial: Path, reporter: Reporter) -> None:
        self.plan, self.partial, self.reporter = settled, partial, reporter
        self.format = model_format(settled)

    def run(self) -> Bundle:
        """Trace, write, measure, seal."""
        with _fingerprinting(self.plan.student) as fingerprint:
            finished_graphs = self._finished(fingerprint)
            drafts = self._drafts(finished_graphs)
            self._check_sizes(drafts, finished_graphs)
            written = [self._written(graph, drafts, finished_graphs, fingerprint) for graph in self.plan.graphs]
            self.reporter.stage("measuring parity")
            measured = [
                msgspec.structs.replace(done, graph=with_parity(self.plan, self.partial, graph, done.graph))
                for graph, done in zip(self.plan.graphs, written, strict=True)
            ]
            self.reporter.stage("sealing")
            joined = self.format.join(self.partial, measured)
            small = write_small_files(self.plan, self.partial)
            manifest = describe(self.plan, joined, small, fingerprint.result())
            forget(self.partial)
            remove_strangers(self.partial, manifest)
            self.plan.student.check_unchanged()
            return seal(self.partial, self.plan.request.output, manifest, self.plan.request.force)

    def _finished(self, fingerprint: Future[str]) -> dict[str, Done]:
        """What an earlier build finished, by graph; a calibration of another student is refused."""
        resumable = can_resume(self.partial)
        if self.plan.calibration is not None:
            self.plan.calibration.check_student(fingerprint.result())
        if not resumable:
            return {}
        keys = {graph.name: resume_key(self.plan, graph, fingerprint.result()) for graph in self.plan.graphs}
        taken = {graph.name: finished(self.partial, graph, keys[graph.name]) for graph in self.plan.graphs}
        whole = {name: one for name, one in taken.items() if one is not None}
        done = {name: one for name, one in whole.items() if not one.graph.shares or one.graph.shares in whole}
        for one in done.values():
            self.format.take_over(one)
        return done

    def _drafts(self, finished_graphs: Mapping[str, Done]) -> dict[str, Draft]:
        drafts = {}
        for graph in self.plan.graphs:
            if graph.name not in finished_graphs:
                self.reporter.stage(f"tracing {graph.name}")
                drafts[graph.name] = self.format.draft(graph)
        return drafts

    def _check_sizes(self, drafts: Mapping[str, Draft], finished_graphs: Mapping[str, Done]) -> None:
        """The tier's budget and the disk, now that the sizes are known to the byte."""
        stored = {name: done.graph.weight_bytes for name, done in finished_graphs.items()}
        stored |= {name: draft.stored_bytes for name, draft in drafts.items()}
        memory = {name: done.graph.memory_bytes for name, done in finished_graphs.items()}
        memory |= {name: draft.memory_bytes for name, draft in drafts.items()}
        check_budget(Sizes(stored, memory), Destination.of(self.plan), self.plan.graphs, self.plan.profile)
        check_disk(self.partial, sum(draft.disk_bytes for draft in drafts.values()))

    def _written(
        self, graph: GraphSpec, drafts: dict[str, Draft], finished_graphs: Mapping[str, Done], fingerprint: Future[str]
    ) -> Done:
        if (done := finished_graphs.get(graph.name)) is not None:
            if drafts:
                self.format.skip(self.partial, done.graph)
            return done
        written = self._write(graph, drafts.pop(graph.name))
        key = resume_key(self.plan, graph, fingerprint.result())
        done = Done(key=key, graph=written.record, files=written.files, kept=written.kept, places=dict(written.places))
        mark_finished(self.partial, graph, done)
        return done

    def _write(self, graph: GraphSpec, draft: Draft) -> WrittenGraph:
        stem = Path(graph.path).stem
        # What an interrupted build left: a package is never written into another.
        for folder in self.partial.glob("*.mlpackage"):
            if re.fullmatch(rf"{re.escape(stem)}(_\d+)?", folder.stem):
                shutil.rmtree(folder)
        return draft.write(self.partial, self.reporter.graph(graph.name, draft.stored_bytes))


@contextlib.contextmanager
def _fingerprinting(student: Student) -> Iterator[Future[str]]:
    """Fingerprint a student in the background: reading it takes as long as tracing does, and leaves it in the page cache.

    An error elsewhere ends the reading at the next block.
    """
    stopped = threading.Event()

    def go_on(_: int) -> None:
        if stopped.is_set():
            raise CancelledError

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(student.fingerprint, go_on)
        finally:
            stopped.set()
