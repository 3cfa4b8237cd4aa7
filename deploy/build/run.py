"""Student to bundle: plan, trace, write, measure, seal. Needs the export extra.

The bundle is put together in a hidden sibling folder and renamed at the end: it is whole or absent. An interrupted build
leaves that folder; the next build of the same student with the same options takes over the graphs that were finished.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from deploy.build.budget import Place, Sizes, best_uniform, check_budget, estimated_sizes
from deploy.build.format import (
    REQUIRED_DB,
    Attention,
    ComputeUnits,
    FormatName,
    ModelFormat,
    Recipe,
    Target,
    graph_db,
    graph_runner,
    model_format,
)
from deploy.build.layout_files import write_layout_files
from deploy.build.precision import computes_in, promised_precision
from deploy.build.request import BuildRequest
from deploy.build.swift.files import check_client_tokenizers, write_swift_files
from deploy.build.swift.schedule import choose_client_schedule
from deploy.bundle import requirements
from deploy.bundle.folder import Bundle
from deploy.bundle.inspect import megabytes
from deploy.bundle.manifest import (
    FORMAT,
    VERSION,
    ClientScheduleRecord,
    FileRecord,
    GraphRecord,
    KeptRecord,
    Manifest,
    PictureRecord,
    RuleRecord,
    SamplingRecord,
    StudentRecord,
    TextRecord,
    TokenizerRecord,
)
from deploy.bundle.seal import (
    BundleBusyError,
    check_place,
    locked,
    partial_folder,
    record_file,
    remove_strangers,
    seal,
)
from deploy.errors import CheckFailed, Complaint, InputError
from deploy.interrupts import interruptible
from deploy.page.page import write_page
from deploy.page.vendor import check_web_runtime
from deploy.tiers.tier import Tier, check_format, check_schemes, default_profile, find_tier
from exporters.hashing import hash_file
from exporters.layouts.plan import plan_graphs
from exporters.layouts.sampling import Sampling, idle_steps, plan_sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.layouts.swift import check_client_sampling
from exporters.layouts.swift_client import T5_TOKENS
from exporters.onnx.opset import TRACED, Opset
from exporters.student.open import open_student
from exporters.student.student import Student
from exporters.student.tokenizers import open_tokenizers
from exporters.student.weights.templates import OPTIONAL_COMPONENTS
from quantization.calibration import Calibration
from quantization.errors import printable
from quantization.files import write_bytes
from quantization.folders import claim_folder, real_place, remove_empty, remove_tree
from quantization.profile import Profile, load_profile, uniform

COMPONENTS = frozenset({"text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"})
PARITY_LIMIT_BYTES = 1 << 30
"""Graphs whose measurement needs more memory than this are measured only on demand, so that a build of any size stays small."""
TOOLS = ("flash-deploy", "torch", "diffusers", "transformers", "onnx-ir", "onnxscript", "onnxruntime")
FORMAT_TOOLS: dict[FormatName, tuple[str, ...]] = {"onnx": (), "coreml": ("coremltools",)}


@dataclass(frozen=True)
class Plan:
    """A request whose every choice is made."""

    request: BuildRequest
    student: Student
    tier: Tier
    precision: Literal["fp32", "fp16", "mixed"]
    compute: Literal["fp32", "fp16"]
    profile: Profile
    calibration: Calibration | None
    sampling: Sampling
    options: GraphOptions
    tokenizers: tuple[tuple[str, str, Any], ...]
    graphs: tuple[GraphSpec, ...]
    compute_units: ComputeUnits | None = None
    stages: int = 1
    target: Target = "iOS18"
    attention: Attention = "fused"
    notes: tuple[str, ...] = ()
    client_schedule: ClientScheduleRecord | None = None

    @property
    def opset(self) -> Opset:
        """Of ONNX graphs."""
        return self.request.opset or TRACED


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


def plan(request: BuildRequest) -> Plan:
    """Make every choice and check all that can be checked before anything is written.

    Raises:
        InputError: the student, the tier, an option or the output cannot be used.
    """
    tier = find_tier(request.tier)
    check_format(request.tier, request.format)
    check_place(request.output, request.force)
    _check_web_runtime(request, tier)
    keep_t5 = tier.keep_t5 if request.keep_t5 is None else request.keep_t5
    student = open_student(request.student, request.variant, () if keep_t5 else OPTIONAL_COMPONENTS, request.ignore_lora)
    student.licences()  # complains of those that cannot be taken along
    defaults = student.defaults
    height = request.height or defaults.height or tier.resolution
    width = request.width or defaults.width or tier.resolution
    keep_t5 = keep_t5 and (student.has_t5 or request.keep_t5 is not None)  # a tier keeps what there is
    steps = request.steps or (len(request.sigmas) if request.sigmas is not None else None) or defaults.steps or tier.steps
    profile = _choose_profile(request)
    calibration = None if request.calibration is None else Calibration(request.calibration)
    precision = promised_precision(profile)
    tokenizers = open_tokenizers(student, keep_t5)
    if request.layout == "swift":
        check_client_tokenizers(tokenizers)
    options = GraphOptions(
        layout=request.layout,
        height=height,
        width=width,
        timesteps=(0.0,) * steps,
        clip_tokens=tokenizers[0][2].model_max_length,
        keep_t5=keep_t5,
        max_sequence_length=request.max_sequence_length
        or (T5_TOKENS if request.layout == "swift" else defaults.max_sequence_length),
        dynamic=request.dynamic or request.layout == "optimum",
    )
    if request.dynamic and student.configs["scheduler"].get("use_dynamic_shifting"):
        complaint = Complaint("--dynamic", "the student's schedule depends on the picture's size", "a fixed size")
        raise InputError("A bundle pins one schedule.", [complaint], "leave --dynamic out and build one bundle for each size")
    plan_graphs(student, options)  # sizes first: the schedule may depend on them
    sampling = plan_sampling(student, height, width, request.steps, request.sigmas, request.sampler, tier.steps)
    if request.layout == "swift":
        check_client_sampling(sampling)
    idle = idle_steps(student, height, width, sampling)
    options = replace(options, timesteps=sampling.timesteps)
    graphs = tuple(plan_graphs(student, options))
    compute = computes_in(profile, request.format, tier)
    if compute == "fp16" and any(rule.scheme.dynamic_activations for rule in profile.rules):
        complaint = Complaint("profile", "w8a8 needs fp32 around its products", "a tier that computes in fp32", request.tier)
        raise InputError("The tier cannot run this profile.", [complaint], "use another scheme or another tier")
    kept_components = {component for graph in graphs for component in graph.components}
    addressed = ((c, name) for c in kept_components for name, weight in student.weights[c].items() if len(weight.shape) > 1)
    profile.check_coverage(addressed, COMPONENTS - kept_components)
    units, stages = compute_units(request, tier), 1
    target: Target = "iOS18"
    attention: Attention = "fused"
    if request.format == "coreml":
        assert tier.coreml is not None  # check_format saw to it
        stages = request.stages or min(tier.coreml.stages, student.configs["transformer"]["num_layers"])
        stages = 1 if request.layout == "swift" else stages
        target = request.target or tier.coreml.target
        assert units is not None
        attention = request.attention or tier.coreml.attention[units]
    return Plan(
        request,
        student,
        tier,
        precision,
        compute,
        profile,
        calibration,
        sampling,
        options,
        tokenizers,
        graphs,
        units,
        stages,
        target,
        attention,
        (*student.notes, *([idle] if idle else [])),
    )


def _check_web_runtime(request: BuildRequest, tier: Tier) -> None:
    if request.web_runtime is None:
        return
    if not _has_page(request, tier):
        complaint = Complaint(
            "--web-runtime", "the bundle gets no page", "a tier for browsers, in the native layout", request.tier
        )
        raise InputError("The web runtime cannot be used.", [complaint], "leave --web-runtime out, or add --tier browser")
    check_web_runtime(request.web_runtime)


def _has_page(request: BuildRequest, tier: Tier) -> bool:
    """Whether the bundle holds a page; it runs the native graphs."""
    return tier.page and request.layout == "native"


def _choose_profile(request: BuildRequest) -> Profile:
    if request.profile is not None and request.precision is not None:
        raise InputError("--precision and --profile cannot both be given.", remedy="a profile says how every weight is stored")
    if request.profile is not None:
        profile = load_profile(request.profile)
    elif request.precision is not None:
        return uniform(request.precision)  # a floating-point bundle is a reference: any tier may have one
    else:
        profile = default_profile(request.tier, request.format)
    tier = find_tier(request.tier)
    check_schemes(request.tier, profile, request.format, compute_units(request, tier), request.target)
    return profile


def compute_units(request: BuildRequest, tier: Tier) -> ComputeUnits | None:
    """What Core ML programs are made for; none in other formats.

    The layout ``swift`` has the transformer in one program, at which the Neural Engine's compiler fails for SD3's size (the
    tiers' file has the source): the GPU, unless the user says otherwise.
    """
    if request.format != "coreml":
        return None
    assert tier.coreml is not None  # check_format saw to it
    return request.compute_units or ("cpu-and-gpu" if request.layout == "swift" else tier.coreml.compute_units)


def _place(made: Plan) -> Place:
    return Place(made.request.tier, made.tier, made.request.format, made.compute_units, made.target)


def _fitted(made: Plan) -> Plan:
    """The plan, with a smaller profile where the tier's own is the user's choice by default and does not fit the tier.

    Sizes need no trace: what cannot fit is told at once.

    Raises:
        TierError: the profile that was asked for does not fit, or none does.
    """
    place = _place(made)
    sizes = estimated_sizes(made.graphs, made.profile, place)
    if sizes.fits(made.tier):
        return made
    best = best_uniform(made.graphs, place)
    if best is None or made.request.profile is not None or made.request.precision is not None:
        check_budget(sizes, place, made.graphs, made.profile)
    assert best is not None
    name, profile, smaller = best
    note = (
        f"the default profile of {made.request.tier} takes {sizes.stored_bytes / 1e9:.2f} GB and {sizes.peak_bytes / 1e9:.2f} GB "
        f"of memory, more than the tier has: {name} for all in its place ({smaller.stored_bytes / 1e9:.2f} GB and "
        f"{smaller.peak_bytes / 1e9:.2f} GB of memory)"
    )
    compute = computes_in(profile, made.request.format, made.tier)
    precision = promised_precision(profile)
    return replace(made, profile=profile, precision=precision, compute=compute, notes=(*made.notes, note))


def build(request: BuildRequest, reporter: Reporter | None = None) -> Bundle:
    """Build a bundle.

    Raises:
        InputError: the request cannot be fulfilled; nothing is left behind.
        CheckFailed: a graph does not compute what diffusers computes; no bundle is made.
    """
    reporter = reporter or Silent()
    request = replace(request, output=real_place(request.output))
    reporter.stage("opening the student")
    made = _fitted(plan(request))
    if request.layout == "swift":
        reporter.stage("drawing by the Swift client's schedule")
        made = _with_client_schedule(made)
    for note in made.notes:
        reporter.note(note)
    partial = partial_folder(request.output)
    made_folders = [folder for folder in partial.parents if not folder.exists()]  # innermost first
    claim_folder(partial)
    try:
        with locked(partial), interruptible():
            if not any(partial.glob("*.done.json")):  # else part of it is on the disk already
                _check_disk(partial, estimated_sizes(made.graphs, made.profile, _place(made)).stored_bytes)
            return _build(made, partial, reporter)
    except Exception as error:  # an interruption is none: then the finished graphs stay for the next build
        if not isinstance(error, BundleBusyError):
            remove_tree(partial)
            remove_empty(made_folders)
        if isinstance(error, OSError):
            complaint = Complaint(str(error.filename or partial), error.strerror or str(error))
            raise InputError("The bundle cannot be written.", [complaint], "free some space or build elsewhere") from error
        raise


def _with_client_schedule(made: Plan) -> Plan:
    force, costly = made.request.force_schedule, made.request.parity == "always"
    record, notes = choose_client_schedule(made.student, made.options, made.sampling, force, costly)
    return replace(made, client_schedule=record, notes=(*made.notes, *notes))


def _build(made: Plan, partial: Path, reporter: Reporter) -> Bundle:
    recipe = _recipe(made)
    shape = model_format(made.request.format, recipe)
    with _fingerprinting(made.student) as fingerprint:
        resumable = any(partial.glob("*.done.json"))
        _check_calibration(made, fingerprint)
        finished = {g.name: _finished(partial, g, _key(made, g, fingerprint.result())) for g in made.graphs} if resumable else {}
        drafts = {}
        for graph in made.graphs:
            if not finished.get(graph.name):
                reporter.stage(f"tracing {graph.name}")
                drafts[graph.name] = shape.draft(graph)
        _check_budget(made, shape, drafts, finished)
        _check_disk(partial, sum(shape.disk_bytes(g, drafts[g.name]) for g in made.graphs if g.name in drafts))
        records = []
        for graph in made.graphs:
            done = finished.get(graph.name)
            if done is not None:
                if drafts:
                    shape.skip(partial, done.graph)
            else:
                done = _write(partial, shape, graph, drafts.pop(graph.name), reporter)
                _mark_finished(partial, graph, _key(made, graph, fingerprint.result()), done)
            records.append(done)
        reporter.stage("measuring parity")
        graphs = [_measured(made, recipe, partial, graph, done.graph) for graph, done in zip(made.graphs, records, strict=True)]
        reporter.stage("sealing")
        manifest = _manifest(made, partial, graphs, records, fingerprint.result())
        for leftover in partial.glob("*.done.json"):
            leftover.unlink()
        remove_strangers(partial, manifest)
        made.student.check_unchanged()
        return seal(partial, made.request.output, manifest, made.request.force)


def _check_calibration(made: Plan, fingerprint: concurrent.futures.Future[str]) -> None:
    if made.calibration is not None and (of := made.calibration.recipe.fingerprint) != fingerprint.result():
        complaint = Complaint(str(made.calibration.folder), "is of another student", fingerprint.result(), of)
        raise InputError("The calibration cannot be used.", [complaint], "flash-deploy calibrate makes one of this student")


@contextlib.contextmanager
def _fingerprinting(student: Student) -> Iterator[concurrent.futures.Future[str]]:
    """Fingerprint a student in the background: reading it takes as long as tracing does, and leaves it in the page cache.

    An error elsewhere ends the reading at the next block.
    """
    stopped = threading.Event()

    def go_on(_: int) -> None:
        if stopped.is_set():
            raise concurrent.futures.CancelledError

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(student.fingerprint, go_on)
        finally:
            stopped.set()


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    """A graph that was written: what the next build of the same needs to take it over."""

    key: str
    graph: GraphRecord
    files: tuple[FileRecord, ...]
    kept: tuple[KeptRecord, ...]


def _recipe(made: Plan) -> Recipe:
    from exporters.reference.case import Texts

    return Recipe(
        made.student,
        made.tier,
        made.options,
        made.sampling,
        made.profile,
        made.calibration,
        made.compute,
        made.tokenizers,
        made.stages,
        made.target,
        made.attention,
        opset=made.opset,
        required_db=REQUIRED_DB[made.request.format].get(made.precision),
        measures=lambda graph: not _parity_note(made.request.parity, graph),
        texts=Texts(made.student, made.options),
    )


def _check_budget(made: Plan, shape: ModelFormat, drafts: Mapping[str, Any], finished: Mapping[str, _Done | None]) -> None:
    stored, memory = 0, {}
    for graph in made.graphs:
        if (done := finished.get(graph.name)) is not None:
            stored += done.graph.weight_bytes
            memory[graph.name] = done.graph.memory_bytes
        else:
            stored += shape.stored_bytes(graph, drafts[graph.name])
            memory[graph.name] = shape.memory_bytes(graph, drafts[graph.name])
    check_budget(Sizes(stored, memory), _place(made), made.graphs, made.profile)


def _write(partial: Path, shape: ModelFormat, graph: GraphSpec, draft: Any, reporter: Reporter) -> _Done:
    _remove_packages(partial, graph)
    written = shape.write(partial, graph, draft, reporter.graph(graph.name, shape.stored_bytes(graph, draft)))
    return _Done(key="", graph=written.record, files=written.files, kept=written.kept)


def _remove_packages(partial: Path, graph: GraphSpec) -> None:
    """What an interrupted build left of a graph's packages: a package is never written into another."""
    stem = Path(graph.path).stem
    for folder in (*partial.glob(f"{stem}.mlpackage"), *partial.glob(f"{stem}_[0-9]*.mlpackage")):
        shutil.rmtree(folder)


def _measured(made: Plan, recipe: Recipe, partial: Path, graph: GraphSpec, record: GraphRecord) -> GraphRecord:
    """The record with its parity, measured unless the graph is too large for that."""
    from exporters.reference.parity import reference_cases

    if note := _parity_note(made.request.parity, graph):
        note = f"not measured in the build ({note}); run flash-deploy verify --student"
        return msgspec.structs.replace(record, parity_note=note)
    db, count = record.parity_db, record.parity_cases
    if db is None or not math.isfinite(db):  # where it is not, measuring says why
        run = graph_runner(made.request.format, partial, record)
        cases = reference_cases(graph, made.student, made.options, texts=recipe.texts)
        db, count = graph_db(made.request.format, made.compute, made.profile, graph, record, partial, run, cases), len(cases)
    if db < (required := REQUIRED_DB[made.request.format].get(made.precision, float("-inf"))):
        raise CheckFailed(f"{graph.name} does not compute what diffusers computes: {db} dB, required {required} dB")
    return msgspec.structs.replace(record, parity_db=min(db, 999.0), parity_cases=count)


def _parity_note(wanted: str, graph: GraphSpec) -> str:
    """Why a graph is not measured in the build; empty where it is."""
    if wanted == "never":
        return "not wanted"
    needed = parity_bytes(graph)
    return f"would take {needed / 1e9:.1f} GB of memory" if wanted == "auto" and needed > PARITY_LIMIT_BYTES else ""


def parity_bytes(graph: GraphSpec) -> int:
    """Memory that measuring a graph takes, roughly: fp32 weights in torch and twice in onnxruntime, and some activations at once.

    Sixteen activations is what a full-size VAE decoder at 512 px holds in onnxruntime (2.4 GB with its weights).
    """
    return 4 * (3 * graph.parameters + 16 * graph.largest_activation)


def _manifest(made: Plan, partial: Path, graphs: Iterable[GraphRecord], records: Sequence[_Done], fingerprint: str) -> Manifest:
    paths = write_layout_files(made.student, made.options, made.tokenizers, partial)
    if _has_page(made.request, made.tier):
        paths += write_page(partial, made.request.web_runtime)
    if made.request.layout == "swift":
        assert made.compute_units is not None
        assert made.client_schedule is not None
        of_client = (made.sampling, made.client_schedule, made.tokenizers, made.target, made.compute_units)
        paths += write_swift_files(made.student, made.options, *of_client, partial)
    files = [file for done in records for file in done.files] + [record_file(partial, path) for path in paths]
    config, vae = made.student.configs["transformer"], made.student.configs["vae"]
    tokenizers = tuple(
        TokenizerRecord(
            input=name,
            path=f"{folder}/tokenizer.json",
            max_length=made.options.max_sequence_length if name == "input_ids_3" else made.options.clip_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        for name, folder, tokenizer in made.tokenizers
    )
    return Manifest(
        format=FORMAT,
        version=VERSION,
        created_with={tool: metadata.version(tool) for tool in _tools(made.request)},
        student=StudentRecord(
            name=printable(made.student.path.resolve().name), fingerprint=fingerprint, licences=made.student.licences()
        ),
        tier=made.request.tier,
        model_format=made.request.format,
        compute_units=made.compute_units,
        attention=made.attention if made.request.format == "coreml" else None,
        layout=made.request.layout,
        compute=made.compute,
        precision=made.precision,
        profile=tuple(
            RuleRecord(component=r.component, weights=r.weights, scheme=r.scheme.name, reason=r.reason)
            for r in made.profile.rules
        ),
        kept=tuple(kept for done in records for kept in done.kept),
        calibration_prompts=0 if made.calibration is None or made.precision != "mixed" else len(made.calibration.recipe.prompts),
        sampling=SamplingRecord(method=made.sampling.method, sigmas=made.sampling.sigmas, timesteps=made.sampling.timesteps),
        picture=PictureRecord(
            height=made.options.height,
            width=made.options.width,
            dynamic=made.options.dynamic,
            latent_channels=config["in_channels"],
            pixels_per_latent=VAE_SCALE,
            multiple_of=VAE_SCALE * config["patch_size"],
            scaling_factor=vae["scaling_factor"],
            shift_factor=vae["shift_factor"] or 0.0,
            largest=config["pos_embed_max_size"] * VAE_SCALE * config["patch_size"],
        ),
        text=TextRecord(
            tokenizers=tokenizers,
            t5="kept" if made.options.keep_t5 else "dropped",
            max_sequence_length=made.options.max_sequence_length,
            joint_dim=config["joint_attention_dim"],
        ),
        graphs=tuple(graphs),
        notes=made.notes,
        opset=_opset(made),
        requires=_requires(made),
        client_schedule=made.client_schedule,
        files=tuple(sorted(files, key=lambda record: record.path)),
    )


def _opset(made: Plan) -> Opset | None:
    return made.opset if made.request.format == "onnx" else None


def _requires(made: Plan) -> dict[str, str]:
    """The least version of what runs the bundle; Core ML programs say themselves which system they need."""
    opset = _opset(made)
    schemes = (rule.scheme for rule in made.profile.rules)
    return {} if opset is None else {requirements.NAME: requirements.least_onnxruntime(opset, made.compute, schemes)}


def _tools(request: BuildRequest) -> tuple[str, ...]:
    return TOOLS + FORMAT_TOOLS[request.format]


def _key(made: Plan, graph: GraphSpec, fingerprint: str) -> str:
    """What a finished graph depends on; equal keys mean equal graphs."""
    versions = [metadata.version(tool) for tool in _tools(made.request)]
    rules = [(rule.component, rule.weights, rule.scheme.name) for rule in made.profile.rules]
    recipe = [
        fingerprint,
        graph.name,
        graph.path,
        asdict(made.options),
        rules,
        made.compute,
        made.request.format,
        made.stages,
        made.target,
        made.attention,
        made.opset,
        msgspec.to_builtins(made.tier),
        _parity_note(made.request.parity, graph) == "",  # what is measured may get more operators in fp32
        None if made.calibration is None else msgspec.to_builtins(made.calibration.recipe),
        versions,
    ]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _done_file(partial: Path, graph: GraphSpec) -> Path:
    return partial / f"{graph.name}.done.json"


def _mark_finished(partial: Path, graph: GraphSpec, key: str, done: _Done) -> None:
    file = _done_file(partial, graph)
    write_bytes(file, msgspec.json.encode(msgspec.structs.replace(done, key=key)))


def _finished(partial: Path, graph: GraphSpec, key: str) -> _Done | None:
    """A graph that an earlier build finished, if it is the one wanted and still as it was written."""
    try:
        done = msgspec.json.decode(_done_file(partial, graph).read_bytes(), type=_Done)
        whole = all(hash_file(partial / record.path) == record.sha256 for record in done.files)
    except (OSError, msgspec.MsgspecError):
        return None
    return done if whole and done.key == key else None


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        complaint = Complaint(str(folder), "too little disk", megabytes(needed), f"{megabytes(free)} free")
        raise InputError("The bundle does not fit on the disk.", [complaint], "free some space or build elsewhere")
