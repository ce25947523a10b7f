"""Every number that a reader might doubt, with its source and reason."""

from __future__ import annotations

# Gradient RMS by block, slope of its natural logarithm per block over block states (the embedding left out).
# Healthy pre-norm models at init lie between -0.05 and 0.00 (closed form, width 256-4096, depth 6-48, GPT-2 and Xavier
# init); a norm-free stack at Xavier init loses or gains about 0.3 a block. 0.5 a block is a factor of 148 over ten blocks.
GRADIENT_SLOPE_LIMIT = 0.5
# A steep slope over few blocks is little in all: it is judged from a factor of 100 on (healthy sibling gradients differ by
# up to 43: a Gemma-2 at init, and OLMo 2's placement over an embedding of std .02 by 24 over 6 blocks).
GRADIENT_LEAST_TOTAL = 100.0
# Whatever the slope, a total of 1,000, beyond which bf16's 8 bits and Adam's epsilon 1e-8 beside gradients of 1e-5 matter.
GRADIENT_TOTAL_LIMIT = 1e3

# Skip transmission below this is reported: at 12 Xavier post-norm blocks it is about 0.016, at 6 about 0.22.
SKIP_TRANSMISSION_LOW = 0.1

# Residual stream: slope of ln RMS per block. Pre-norm grows at most like the square root of depth; a stack that doubles
# its RMS every block (0.69) reaches fp16's largest number, 65,504, within 16 blocks of unit scale.
RESIDUAL_SLOPE_LIMIT = 0.69
# ... and over few blocks it is little in all: writes that start below a norm's epsilon grow by 30 in three blocks and settle.
RESIDUAL_LEAST_TOTAL = 100.0
FP16_LARGEST = 65_504.0
# Warn at a quarter of it: one block may double it, and one outlier channel exceeds the RMS by far.
FP16_HEADROOM = 0.25

# Update RMS over weight RMS of a weight matrix. About 1e-3 is a common rule of thumb (Karpathy, micrograd lectures);
# warm-up from a small init exceeds it, so only ten per cent of the weight in one step, well after the start, is a warning.
UPDATE_RATIO_HIGH = 0.1
UPDATE_JUDGED_AFTER = 10  # steps: Adam's second moment and a warm-up have settled by then or are the finding of others
UPDATE_APART_AT_FIRST = 3.0
UPDATE_SIBLINGS = 20.0  # times the median of the same parameter's siblings in other blocks

# Bias share of a branch's output: energy of the last bias over energy of the output. PaLM and Llama drop biases for
# stability (Chowdhery et al. 2022, section 2); no limit is published. Above one half the branch says mostly the same at
# every token, which trained models do on purpose: it is a warning only where the same branch of the other blocks does not.
BIAS_SHARE_NOTED = 0.1
BIAS_SHARE_HIGH = 0.5
BIAS_SIBLINGS = 4.0  # times the median of its siblings
LEAST_SIBLINGS = 3  # below this a median is one model's accident

# Variance of attention logits up to which the closed forms follow softmax. Measured, 12 blocks of 256, ReLU and GELU, two
# seeds: gradients within 8 % below 0.7, within 17 % at 1 (Xavier init), 60 % off at 2.7, a factor of 4 at 6.5.
LOGIT_VARIANCE_LIMIT = 1.2

LEAST_BLOCKS = 4  # below this a slope has no degrees of freedom to speak of

# Factor of the skip, or of a branch, in an add. Discovery reads it from the forward to about 1e-5 in float32; sound blocks of
# one class share it exactly, and a fault of one per cent is to be found.
SCALE_ALIKE = 1e-3
SCALE_APART = 5e-3
FEWEST_LOGIT_SCALES = 4  # blocks: of four, three attention factors may agree by chance where each block has its own

# A block stands apart from its siblings outside their range by that range again, this many times (in logarithms), and by a ratio
# of its own kind. At init the RMS of sibling weights differs by at most 4 % (ten architectures); gains are 1 and biases 0
# exactly. Siblings that vary by more than SIBLINGS_ALIKE are trained or noisy: nothing below SIBLINGS_VARY is told of them.
# Simulated false alarms: at most 1 in 100 of 6 to 24 log-normal siblings of spreads .01 to .5, 1 in 30 of 4 or 5.
SIBLING_SPANS = 2.0
SIBLINGS_ALIKE = 1.15
SIBLINGS_SAME = 1.05  # of at most five: they can be alike by chance
SIBLINGS_VARY = 2.0
WEIGHT_APART = 1.15
GAIN_APART = 1.1
BIAS_APART = 3.0
BIAS_FLOOR = 1e-3  # RMS below which a bias is nothing
# Statistics of activations vary between healthy siblings far more than weights do.
HIDDEN_APART = 2.0
HIDDEN_APART_AT_ENDS = 6.0
LOGITS_APART = 1.5
LOGITS_APART_AT_ENDS = 10.0
WRITE_APART = 3.0
WRITE_APART_AT_ENDS = 30.0
# The first and last blocks of a trained network lie apart from the others by this much without being ill (transformers of 4 to 12
# blocks after 60 to 200 steps); parameters that start at 0 by more.
TRAINED_ENDS_APART = 2.0
FROM_ZERO_APART = 10.0
STARTS_AT_ONE = 0.5  # a gain below it is stored less 1, or as a logarithm
# A norm gives sqrt(var / (var + eps)) of its gain: a twentieth less than its siblings, and at least a tenth less in all.
EPSILON_SHRINKS = 1.05
EPSILON_MATTERS = 0.9
EPSILON_UNUSUAL = 0.3
# What the siblings give of their gains where these are stored as they are used; those stored less 1 (Gemma) tell nothing.
EPSILON_USUAL = (0.7, 1.1)
# Share of hidden values that are exactly 0: half at init under ReLU, about 0.9 in sparse trained networks.
DEAD_SHARE = 0.9
DEAD_APART = 0.3
# The tokens' mean cosine rises by less than 0.1 a branch at init, by up to 0.3 in the first one of a post-norm stack.
COSINE_JUMP = 0.4

# A fresh model guesses: its loss is ln V, and half the variance of its logits more. One nat more is a variance of 2.
INITIAL_LOSS_ABOVE = 1.0
# A trained model on text that it does not know is unsure, or wrong by some nats: twice ln V is the square of a token's chance.
LOSS_OF_GUESSES = 2.0
FRESH = 0.75  # share of gains at 1 and biases at 0; a fault may have touched some

# Logits over what the first projections give: where queries, keys and values come from one matrix their sizes differ by less.
LOGIT_SCALE_ALIKE = 1.5

DROPOUT_APART = 0.05  # share dropped: dropouts are chosen in steps of a tenth

# Closed forms: see docs/theory.md for what they were measured against.
# Attention weights whose entropy is further than this (nats) from that of even weights less half the logits' variance see fewer
# tokens than they may, or prefer some: over 32 tokens a window of half of them lies .5 apart.
UNIFORM_ENTROPY_APART = 0.1
HIDDEN_ALIKE = 1.15  # RMS of a hidden layer over the closed form: units of one init agree within 3 % at width 64
# Bands of the closed forms: a fraction, more of it for gradients where logits vary, and more for both in narrow streams.
THEORY_RMS_BAND = 0.05
THEORY_GRADIENT_BAND = 0.1
THEORY_GRADIENT_BAND_LOGITS = 0.3  # times the largest variance of a query's logits
NARROW = 1.0  # over the root of the width
# A fresh model is unlike its closed form from this factor on, and from its band squared: none of the designs of docs/theory.md
# comes near, and what scales a stream beside its weights does.
THEORY_APART = 2.0
LAST_GRADIENT_APART = 3.0  # tokens over tokens that carry the loss

# Forecasts: see docs/forecasts.md for the backtest. Growth is followed over the last half of the run, on at least so many points.
FORECAST_WINDOW = 0.5
FORECAST_LEAST_POINTS = 8
FORECAST_MOST_POINTS = 64  # evenly spread: pairs of points are compared
FORECAST_ORDERED = 0.6  # Kendall's tau; noise alone has 0, with a standard deviation of .28 at 8 points and .1 at 64
FORECAST_SIGNIFICANT = 4.0  # growth over the window, in robust standard deviations of what the line leaves
FORECAST_STEADY = 0.6  # slope of the window's last half over that of its first: a series that saturates falls below
# Growth seen over growth still missing, in the law's own unit: nothing is carried on three times as far.
FORECAST_SEEN = 0.35
# Times the best law's miss on what it was not shown: up to this another law's band counts as well.
FORECAST_RIVAL = 3.0
FORECAST_WIDEST = 2.0  # times the time that is left: a band that is wider either way tells nothing
FORECAST_FARTHEST = 10.0  # times the run so far
FORECAST_SOON = 0.5  # of the run so far: within it a forecast is a warning
# Runs whose largest attention logit passed 1e4 diverged; at 1e3 the loss suffers (Wortsman et al. 2023, section 3.1).
ATTENTION_LOGIT_LIMIT = 1e4
# bf16 holds 8 bits: between 64 and 128 its numbers lie half a unit apart, and a probability is known to a factor of 1.3.
LOG_Z_LIMIT = 64.0
GAIN_LIMIT = 10.0  # times where it began, either way

# A run beside the recording of a good one: values may lie this many times outside the range that the good run took at steps
# within a factor of BASELINE_NEAR.
BASELINE_APART = 3.0
BASELINE_NEAR = 1.5
BASELINE_LASTS = 2  # sampled steps outside in a row: a spike of one batch is none

# Hyperparameters outside these are remarked on, never alarmed: what published models have, but for a few on purpose (Gemma 2's
# and LaMDA's MLPs of 8 widths, T5's of 64, its heads of 16), and the widths a block over which the loss is flat (Kaplan et al.).
USUAL_MLP = (3.0, 5.0)
USUAL_MLP_GATED = (2.5, 4.0)  # 8/3 widths have the parameters of 4 without a gate
USUAL_ASPECT = (10.0, 330.0)
USUAL_HEADS = (1.0, 1.5)
USUAL_DROPOUT = (0.0, 0.1)
USUAL_WEIGHT_DECAY = (0.0, 0.1)

# Error of a branch's write under bf16 autocast: 1.5e-3 to 6.4e-3 in 18 kinds of small models, fresh or trained for 40 steps, and
# never more than 1.7 times the median of its siblings.
BF16_APART = 4.0
BF16_MATTERS = 0.03
