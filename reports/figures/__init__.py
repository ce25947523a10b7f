"""List the charts of a report, section by section: a new chart is one file and one line here."""

from __future__ import annotations

from . import (
    attention,
    bias_terms,
    biases,
    exact_checks,
    gradient_flow,
    hidden_layers,
    hyperparameters,
    logits,
    norms,
    parameters,
    placements,
    profiles,
    residual_stream,
    shared_findings,
    steps,
    variant_coherence,
    variant_grids,
    variant_losses,
    variant_norms,
)
from .chart import ComparisonChart, RunChart

RUN_SECTIONS: tuple[tuple[str, str, str, tuple[RunChart, ...]], ...] = (
    (
        "checks",
        "Exact checks",
        "What was proved on this model itself, by moving one thing and looking at another.",
        (exact_checks.checks, exact_checks.checks_by_place),
    ),
    (
        "gradient-flow",
        "Gradient flow",
        "How the gradient comes back down the stream: along the skips, through the branches, at every state and step.",
        (
            gradient_flow.skip_transmission,
            gradient_flow.gradient_by_depth,
            gradient_flow.gradient_heatmap,
            gradient_flow.gradient_paths,
        ),
    ),
    (
        "residual-stream",
        "Residual stream",
        "How large the stream is on its way up, and what each branch adds to it.",
        (residual_stream.state_by_depth, residual_stream.state_heatmap, residual_stream.writes_by_depth),
    ),
    (
        "norms",
        "Norms",
        "What every norm reads, and what it does to signal and gradient.",
        (norms.norm_inputs, norms.norm_gains, norms.mean_energy, norms.gain_parameters),
    ),
    (
        "biases",
        "Biases",
        "What the bias terms contribute to the writes, and what part of the gradient goes into them.",
        (biases.bias_share, biases.drift, biases.bias_gradient_share, biases.coherence, biases.redundant),
    ),
    (
        "hidden-layers",
        "Hidden layers of the MLPs",
        "What the activation function or the gate hands to the last projection.",
        (hidden_layers.kurtosis, hidden_layers.zero_share),
    ),
    (
        "attention",
        "Attention and tokens",
        "How sharp each block's attention is, and whether tokens stay apart from each other on the way up.",
        (
            attention.largest_logits,
            attention.sharpest_heads,
            attention.sinks,
            attention.token_similarity,
            attention.angular_distance,
            attention.expert_loads,
        ),
    ),
    (
        "parameters",
        "Parameters",
        "How large each block's weights are, how far the optimizer moves them, and what it remembers of their gradients.",
        (parameters.update_ratio, parameters.weights, parameters.staleness, parameters.below_epsilon),
    ),
    ("the-run-itself", "The run", "", (steps.loss_and_norms, logits.log_z)),
    (
        "design",
        "Design beside published models",
        "Sizes and settings, and what they would cost between devices.",
        (hyperparameters.beside, hyperparameters.published, hyperparameters.sent),
    ),
)

COMPARISON_SECTIONS: tuple[tuple[str, str, str, tuple[ComparisonChart, ...]], ...] = (
    (
        "placement",
        "What norm placement does",
        "What a norm on the stream costs is the identity path, so that comes first; the full gradient follows below.",
        (placements.skip_transmission, placements.gradient_shares),
    ),
    (
        "profiles",
        "Signal and gradient by depth",
        "Measured at init, the closed form over it where the assumptions of one hold; then the gradient as training goes on.",
        (profiles.state_rms, profiles.gradient_rms, variant_grids.gradients),
    ),
    (
        "depth",
        "What depth does",
        "How much a change of the weights moves the output, in stacks of several depths.",
        (placements.amplification,),
    ),
    (
        "norms",
        "What every norm does",
        "What each norm reads, and what it does to signal and gradient.",
        (variant_norms.norm_inputs, variant_norms.norm_gains, variant_norms.mean_energy),
    ),
    (
        "biases",
        "What bias terms do",
        "Biases start at zero, so that a variant with them and one without are the same model at init: what they do shows "
        "in training.",
        (
            bias_terms.bias_share_in_training,
            variant_grids.bias_shares,
            bias_terms.bias_share_by_depth,
            variant_coherence.coherence,
            bias_terms.bias_gradient_share,
            variant_coherence.redundant,
        ),
    ),
    (
        "training",
        "Training",
        "What the designs reach, and what of it is more than chance.",
        (variant_losses.learning_rate, variant_losses.crossed, bias_terms.losses),
    ),
    ("appearing", "Findings side by side", "", (shared_findings.by_variant,)),
)
