"""A request whose every choice is made, and checked before anything is written."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploy.build.parity import REQUIRED_DB, parity_note
from deploy.build.request import BuildRequest
from deploy.build.swift.tokenizers import check_client_tokenizers
from deploy.bundle.seal import check_place
from deploy.errors import Complaint, InputError
from deploy.page.vendor import check_web_runtime
from deploy.tiers.profiles import check_schemes, computes_in, default_profile, promised_precision
from deploy.tiers.schema import Tier
from deploy.tiers.tier import check_format, find_tier
from exporters.choices import TRACED, WITH_FUNCTIONS, AttentionForm, Compute, ComputeUnits, Opset, Precision, System
from exporters.image_to_image import not_drawn_upon
from exporters.layouts.plan import plan_graphs
from exporters.layouts.sampling import Sampling, as_wanted, idle_steps, plan_sampling
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.layouts.swift import check_client_sampling
from exporters.layouts.swift_client import T5_TOKENS
from exporters.layouts.swift_schedule import client_schedule
from exporters.scales import denoised_sizes
from exporters.student.open import open_student
from exporters.student.structure import COMPONENTS
from exporters.student.student import Student
from exporters.student.tokenizers import Tokenizers, open_tokenizers
from exporters.student.weights.templates import OPTIONAL_COMPONENTS
from quantization.calibration import Calibration
from quantization.profile import Profile, load_profile, uniform

if TYPE_CHECKING:
    from exporters.reference.case import Texts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request whose every choice is made.

    Attributes:
        request: what was asked for.
        student: what is exported.
        tier: what for.
        profile: how weights are stored.
        calibration: what is known of the weights.
        sampling: the schedule.
        options: what shapes the graphs.
        tokenizers: of each encoder that is kept.
        graphs: in the order in which they run.
        compute_units: what Core ML programs are made for.
        stages: programs that the denoiser becomes (Core ML).
        system: the oldest that must run them (Core ML).
        attention: one operation for all heads, or one einsum for each (Core ML).
        notes: what whoever builds should know, a line each.
    """

    request: BuildRequest
    student: Student
    tier: Tier
    profile: Profile
    calibration: Calibration | None
    sampling: Sampling
    options: GraphOptions
    tokenizers: Tokenizers
    graphs: tuple[GraphSpec, ...]
    compute_units: ComputeUnits | None = None
    stages: int = 1
    system: System = "iOS18"
    attention: AttentionForm = "fused"
    notes: tuple[str, ...] = ()

    @property
    def opset(self) -> Opset:
        """The opset of ONNX graphs."""
        return self.request.opset or TRACED

    @property
    def precision(self) -> Precision:
        """What the profile promises."""
        return promised_precision(self.profile)

    @property
    def compute(self) -> Compute:
        """What matrices compute in."""
        return computes_in(self.profile, self.request.format, self.tier)

    @property
    def required_db(self) -> float | None:
        """What each graph must reach against diffusers; none where the profile promises nothing."""
        return REQUIRED_DB[self.request.format].get(self.precision)

    @property
    def has_page(self) -> bool:
        """Whether the bundle holds a page; it runs the native graphs."""
        return _has_page(self.request, self.tier)

    def measures(self, graph: GraphSpec) -> bool:
        """Whether the build measures a graph."""
        return not parity_note(self.request.parity, graph)

    @functools.cached_property
    def texts(self) -> Texts:
        """What prompts become in the student, to measure graphs on."""
        from exporters.reference.case import Texts

        return Texts(self.student, self.options)


def plan(request: BuildRequest) -> Plan:
    """Make every choice and check all that can be checked before anything is written, the output's place too.

    Raises:
        InputError: the student, the tier, an option or the output cannot be used.
    """
    check_format(request.tier, request.format)
    check_place(request.output, request.force)
    return settle(request)


def settle(request: BuildRequest) -> Plan:
    """Make every choice of a request; where its output lies does not matter.

    Raises:
        InputError: the student, the tier or an option cannot be used.
    """
    tier = find_tier(request.tier)
    check_format(request.tier, request.format)
    _check_web_runtime(request, tier)
    keep_t5 = tier.keep_t5 if request.keep_t5 is None else request.keep_t5
    without = () if keep_t5 else OPTIONAL_COMPONENTS
    student = open_student(request.student, request.variant, without, request.ignore_lora, request.lora, request.components)
    student = as_wanted(student, request.schedule)
    student.licences()  # complains of those that cannot be taken along
    profile = _choose_profile(request, tier)
    calibration = None if request.calibration is None else Calibration(request.calibration)
    tokenizers = open_tokenizers(student, keep_t5 and student.has_t5)
    if request.layout == "swift":
        check_client_tokenizers(tokenizers)
    options, sampling = _shape(request, tier, student, tokenizers, keep_t5)
    graphs = tuple(plan_graphs(student, options))
    _check_profile(profile, request, tier, student, graphs)
    idle = idle_steps(student, options.height, options.width, sampling)
    choices = _coreml_choices(request, tier, student)
    unguided = student.guidance_note if request.guidance_scale is None and not sampling.guidance.on else ""
    return Plan(
        request=request,
        student=student,
        tier=tier,
        profile=profile,
        calibration=calibration,
        sampling=sampling,
        options=options,
        tokenizers=tokenizers,
        graphs=graphs,
        notes=(*student.notes, *filter(None, (unguided, idle, _stored_anew(options, choices), _learned(request, student)))),
        **choices,
    )


def _shape(
    request: BuildRequest, tier: Tier, student: Student, tokenizers: Tokenizers, keep_t5: bool
) -> tuple[GraphOptions, Sampling]:
    """What shapes the graphs, and the schedule, each as the request says, else the student, else the tier."""
    defaults = student.defaults
    height = request.height or defaults.height or tier.resolution
    width = request.width or defaults.width or tier.resolution
    schedule = request.schedule.over(defaults)
    if schedule.scales:
        _check_growing(request, tier)
    steps = schedule.steps or tier.steps
    tokens = T5_TOKENS if request.layout == "swift" else defaults.max_sequence_length
    options = GraphOptions(
        layout=request.layout,
        height=height,
        width=width,
        timesteps=(0.0,) * steps,
        clip_tokens=tokenizers[0][2].model_max_length,
        keep_t5=keep_t5 and (student.has_t5 or request.keep_t5 is not None),  # a tier keeps what there is
        max_sequence_length=request.max_sequence_length or tokens,
        dynamic=request.dynamic or request.layout == "optimum" or bool(schedule.scales and request.format == "onnx"),
        vae_bands=request.vae_bands or 1,
        vae_encoder=request.vae_encoder,
        other_sizes=tuple(size for size in dict.fromkeys(request.other_sizes) if size != (height, width)),
    )
    _check_several(options, request, tier)
    if (request.dynamic or options.other_sizes) and student.configs["scheduler"].get("use_dynamic_shifting"):
        flag = "--dynamic" if request.dynamic else "--size"
        complaint = Complaint(flag, "the student's schedule depends on the picture's size", "a fixed size")
        raise InputError("A bundle pins one schedule.", [complaint], "build one bundle for each size")
    plan_graphs(student, options)  # sizes first: the schedule may depend on them
    sampling = plan_sampling(student, height, width, request.schedule, request.guidance, tier.steps)
    if sampling.guidance.skip_guidance_layers and request.layout != "native":
        complaint = Complaint(
            "--skip-guidance-layers", "only graphs of the layout native can leave layers out", "native", request.layout
        )
        raise InputError("The picture cannot be guided.", [complaint])
    if request.vae_encoder and (why := not_drawn_upon(sampling.method, sampling.scales)):
        raise InputError("The bundle cannot draw upon pictures.", [Complaint("--vae-encoder", why)], "leave it out")
    if not options.dynamic:
        latents = [(height // VAE_SCALE, width // VAE_SCALE) for height, width in options.picture_sizes]
        options = replace(options, sizes=denoised_sizes(sampling.scales, latents, len(sampling.timesteps)))
    client = None
    if request.layout == "swift":
        check_client_sampling(sampling)
        client = client_schedule(sampling.sigmas, student.configs["scheduler"].get("shift"))
    guided = request.layout == "swift" and sampling.guidance.on
    return replace(options, timesteps=sampling.timesteps, client=client, guided=guided), sampling


def _learned(request: BuildRequest, student: Student) -> str:
    """That a student has learned to be stored by a profile, where another is taken."""
    file = student.path / "profile.toml"
    if request.profile is not None or request.precision is not None or not file.is_file():
        return ""
    return f"the student's folder holds a profile that it has learned to be stored by: --profile {file} stores it so"


def _stored_anew(options: GraphOptions, choices: dict[str, Any]) -> str:
    """That Core ML packages of older systems share no weights."""
    if not choices or not options.other_sizes or choices["system"] in WITH_FUNCTIONS:
        return ""
    return f"each of the {len(options.picture_sizes)} sizes has packages of its own: sharing their weights wants iOS 18"


def _check_several(options: GraphOptions, request: BuildRequest, tier: Tier) -> None:
    """Refuse several sizes where graphs have none of their own, and where nothing chooses among them."""
    if not options.other_sizes:
        return
    complaints = []
    if request.layout == "swift":
        complaints.append(Complaint("--size", "the Swift client has one", "one size, or --layout native", "several"))
    elif options.dynamic:
        complaints.append(Complaint("--size", "these graphs draw any size", "one size, the default", "several"))
    elif _has_page(request, tier):
        complaints.append(Complaint("--size", "the browser's page draws one size", "one size, or another tier", "several"))
    if complaints:
        raise InputError("The bundle cannot have several sizes.", complaints)


def _check_growing(request: BuildRequest, tier: Tier) -> None:
    """Refuse what cannot draw latents that grow from step to step: it takes a runtime that resizes."""
    complaints = []
    if request.layout != "native":
        complaints.append(
            Complaint("--scales", "only this project's runtime enlarges latents", "--layout native", request.layout)
        )
    elif _has_page(request, tier):
        complaints.append(Complaint("--scales", "the browser's page draws one size", "another tier", request.tier))
    if complaints:
        raise InputError("Latents that grow from step to step cannot be drawn.", complaints)


def _check_profile(profile: Profile, request: BuildRequest, tier: Tier, student: Student, graphs: tuple[GraphSpec, ...]) -> None:
    """Refuse a profile that cannot be computed as it says, and rules that match nothing."""
    if computes_in(profile, request.format, tier) == "fp16" and any(rule.scheme.dynamic_activations for rule in profile.rules):
        complaint = Complaint("profile", "w8a8 needs fp32 around its products", "a tier that computes in fp32", request.tier)
        raise InputError("The tier cannot run this profile.", [complaint], "use another scheme or another tier")
    kept = {component for graph in graphs for component in graph.components}
    addressed = ((c, name) for c in kept for name, weight in student.weights[c].items() if len(weight.shape) > 1)
    profile.check_coverage(addressed, frozenset(COMPONENTS) - kept)


def _coreml_choices(request: BuildRequest, tier: Tier, student: Student) -> dict[str, Any]:
    """What only Core ML bundles have."""
    units = compute_units(request, tier)
    if units is None:
        return {}
    assert tier.coreml is not None  # check_format saw to it
    stages = request.stages or min(tier.coreml.stages, student.configs["transformer"]["num_layers"])
    return {
        "compute_units": units,
        "stages": 1 if request.layout == "swift" else stages,
        "system": request.system or tier.coreml.system,
        "attention": request.attention or tier.coreml.attention[units],
    }


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
    return tier.page and request.layout == "native"


def _choose_profile(request: BuildRequest, tier: Tier) -> Profile:
    if request.profile is not None and request.precision is not None:
        raise InputError("--precision and --profile cannot both be given.", remedy="a profile says how every weight is stored")
    if request.profile is not None:
        profile = load_profile(request.profile)
    elif request.precision is not None:
        return uniform(request.precision)  # a floating-point bundle is a reference: any tier may have one
    else:
        profile = default_profile(request.tier, request.format)
    check_schemes(request.tier, profile, request.format, compute_units(request, tier), request.system)
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
