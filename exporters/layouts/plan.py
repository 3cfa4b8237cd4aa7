"""Every graph that can be exported: its inputs and outputs, the module that is traced, and where its weights come from.

=======================  ===============================================================
native ``text_encoder``  ``input_ids``, ``input_ids_2`` (``input_ids_3`` with T5) to
                         ``encoder_hidden_states``, ``pooled_projections``
native ``conditioner``   ``pooled_projections`` to ``modulations`` [steps, rows, channels]
native ``denoiser``      ``hidden_states``, ``encoder_hidden_states``, ``modulation``
                         (one step's rows) to ``out_sample``
native ``vae_decoder``   ``latent_sample`` (as sampled) to ``sample``, RGB in [0, 1]
native ``vae_encoder``   ``sample``, RGB in [0, 1], to ``latent_mean`` (as a sampler has
                         it) and ``latent_log_variance``, which a TAESD has not
optimum (each folder)    what ``ORTStableDiffusion3Pipeline`` feeds to what it reads
swift (each program)     what Apple's Swift client feeds to what it reads: :mod:`exporters.layouts.swift_client`
=======================  ===============================================================
"""

from __future__ import annotations

from exporters.errors import Complaint, ExportError
from exporters.layouts.native import can_be_in_bands, native_graphs
from exporters.layouts.optimum import optimum_graphs
from exporters.layouts.spec import VAE_SCALE, GraphOptions, GraphSpec
from exporters.layouts.swift import swift_graphs
from exporters.student.student import Student


def plan_graphs(student: Student, options: GraphOptions) -> list[GraphSpec]:
    """The graphs of a bundle, in the order in which they run.

    Raises:
        ExportError: the options do not fit the student.
    """
    _check(student, options)
    if options.layout == "swift":
        return swift_graphs(student, options)
    return native_graphs(student, options) if options.layout == "native" else optimum_graphs(student, options)


def _check(student: Student, options: GraphOptions) -> None:
    config, vae = student.configs["transformer"], student.configs["vae"]
    step = VAE_SCALE * config["patch_size"]
    complaints = []
    if (scale := 2 ** (len(vae["block_out_channels"]) - 1)) != VAE_SCALE:
        complaints.append(Complaint("vae: block_out_channels", "another scale", f"{VAE_SCALE} pixels per latent", str(scale)))
    limit = config["pos_embed_max_size"] * step
    for name, size in [pair for both in options.picture_sizes for pair in zip(("height", "width"), both, strict=True)]:
        if size <= 0 or size % step or size > limit:
            complaints.append(Complaint(name, "does not fit the student", f"a multiple of {step}, at most {limit}", str(size)))
    complaints += _check_bands(student, options)
    if options.keep_t5 and not student.has_t5:
        complaints.append(Complaint("text_encoder_3", "cannot be kept: the student has none"))
    if not options.timesteps:
        complaints.append(Complaint("steps", "none", "at least 1"))
    for name in ("text_encoder", "text_encoder_2"):
        limit = student.configs[name]["max_position_embeddings"]
        if not 0 < options.clip_tokens <= limit:
            complaints.append(
                Complaint(name, "has too few positions for its tokenizer", f"at least {options.clip_tokens}", str(limit))
            )
    if not 0 < options.max_sequence_length <= 512:  # the pipeline of diffusers takes no more
        complaints.append(Complaint("max_sequence_length", "wrong", "1 to 512", str(options.max_sequence_length)))
    if complaints:
        raise ExportError("These options do not fit the student.", complaints)


def _check_bands(student: Student, options: GraphOptions) -> list[Complaint]:
    """Bands of rows are all alike, also at the VAE's second level."""
    if options.vae_bands > 1 and not can_be_in_bands(student):
        return [Complaint("vae_bands", "an AutoencoderTiny is computed at once", "1", str(options.vae_bands))]
    return [
        Complaint(
            "vae_bands", "do not divide the picture", f"a divisor of {rows}, a quarter of the height", str(options.vae_bands)
        )
        for rows in dict.fromkeys(height // 4 for height, _ in options.picture_sizes)
        if rows % options.vae_bands
    ]
