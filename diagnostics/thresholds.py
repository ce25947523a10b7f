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
# Factors of attention logits are read off sizes, which a window or a merging of tokens changes by some per cent.
LOGIT_FACTOR_APART = 0.03
MOST_STRAY = 2  # adds of a stack with a term that is no branch: models that loop inject their input at several
# Every how many blocks published models turn queries otherwise, the last of each such run, and by how much of the usual turn at
# most: 4 in Llama 4, SmolLM3 and Cohere 2 (no rotation there), 6 in Gemma 3 (a larger base, and in some a scale). Where one block
# alone does so and could be the first of these, it is a remark.
PATTERNS_OF_POSITIONS = {4: 0.02, 6: 0.999}
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
RANK_APART = 3.0  # stable ranks of fresh siblings agree within a tenth
# A first update may be larger than the weights. What they were before it is known where chance makes less of it than this.
CHANCE_OF_UPDATES = 0.2
BIAS_APART = 3.0
BIAS_FLOOR = 1e-3  # RMS below which a bias is nothing
# Statistics of activations vary between healthy siblings far more than weights do.
HIDDEN_APART = 2.0
HIDDEN_APART_AT_ENDS = 6.0
LOGITS_APART = 1.5
LOGITS_APART_AT_ENDS = 10.0
LOGITS_EVEN = 1e-5  # standard deviation below which attention is even, whatever its logits are
WRITE_APART = 3.0
WRITE_APART_AT_ENDS = 30.0
# The first and last blocks of a trained network lie apart from the others by this much without being ill (transformers of 4 to 12
# blocks after 60 to 200 steps); parameters that start at 0 by more.
TRAINED_ENDS_APART = 2.0
GAIN_ENDS_APART = 1.4  # of gains that are alike within SIBLINGS_SAME in the other blocks: hardly trained yet
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
# Before a run the first loss is held closer: independent labels make ln V + var / 2 to the spread of the logits over the root of
# the number of tokens, a tenth of a nat for a hundred tokens and logits of std 1; tied embeddings and short batches take more.
INITIAL_LOSS_NEAR = 0.25
# A trained model on text that it does not know is unsure, or wrong by some nats: twice ln V is the square of a token's chance.
LOSS_OF_GUESSES = 2.0
FRESH = 0.75  # share of gains at 1 and biases at 0; a fault may have touched some
FEWEST_NORM_VECTORS = 4  # that tell alone, where biases are drawn at random

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

# Attention over training. Gaussian exponents of standard deviation s over n keys condense on a few of them beyond
# s = sqrt(2 ln n) (Derrida 1981, random energy model); there the gap between the largest and the second is s / sqrt(2 ln n)
# on average, so that at four times that the second key has a weight of e^-4, 2 %: nothing is left to learn from.
FROZEN_HARD = 4.0
# Entropy over that of even weights, mean over a block's heads. Sound runs of 200 to 400 steps ended above .34, the first block
# of one at ten times the usual rate at .17 with its next at .44. A block is apart where its nearest sibling has twice, and the
# median sibling three times its ratio.
ENTROPY_COLLAPSED = 0.25
ENTROPY_COLLAPSED_FIRST = 0.1  # of the first block
ENTROPY_FALLS = 2.0
ENTROPY_NEAREST = 2.0
ENTROPY_SIBLINGS = 3.0
ENTROPY_LEAST_STEPS = 4  # sampled steps
SINK_SHARE = 0.5  # most of the attention; trained models have such heads and need them (Xiao et al. 2024)

# Massive activations: above 100 in size and about 1,000 times the median (Sun et al. 2024); the RMS, which they raise, is nearer.
MASSIVE_PEAK = 100.0
# Energy of one channel's mean over that of the state: 1 / width where channels are even. Sound runs at width 64 had at most .06,
# one at ten times the usual rate .16.
CHANNEL_SHARE = 0.25
CHANNEL_EVEN = 16.0  # times its even part, in narrow streams
CHANNEL_MOST = 0.5
CHANNEL_GROWS = 1.25  # over the last half of the run, and steadily

# Loss spikes. The score is OLMo 2's: 7 standard deviations over 1,000 steps; it found 0.03 % of steps in good runs, 0.4 % in bad.
SPIKE_SIGMAS = 7.0
SPIKE_WINDOW = 1000
SPIKE_SCORE = 1e-3  # between the two
SPIKE_BAND = 100  # steps before: short enough to follow a loss that falls
SPIKE_BAND_LEAST = 50  # below it quartiles are not known
SPIKE_LASTS = 5  # steps of a running median of five: shorter ones are seven ill steps at most
SPIKE_BACK = 2 / 7  # of the band above the median: two deviations
SPIKE_LEAST_RISE = 0.05  # of the loss: a band narrower than that is one of nearly constant losses
SPIKE_BEFORE = 8  # steps by which a gradient may rise before the loss does (Wortsman et al. 2023: 1 to 8)
SPIKE_GRADIENT = 3.0  # times its median before

# Clipping: the norm before it may grow severalfold in a sound run's first steps; over the last half of a run it does not.
CLIP_ALWAYS = 0.99
CLIP_GROWS = 3.0
CLIP_JUDGED_AFTER = 100  # steps

# Adam's epsilon: where sqrt(v) is eps the update is half of what it would be. Most of a block's weights below it, none of its
# siblings': sound runs had at most .06 in any block.
BELOW_EPSILON = 0.5
BELOW_EPSILON_SIBLINGS = 0.2
# RMS of g / sqrt(v): 1 in a steady state, at most 1 / sqrt(1 - beta2), 4.5 at .95 and 32 at .999. Single noisy steps of sound
# runs reach 3.7 in all blocks at once. Over 1.5, a block between the ends had at most 1.3 times its siblings' largest, one at an
# end 2.3 times (40 runs of 20 models).
STALE = 2.3  # StableAdamW's mark
STALE_SIBLINGS = 2.0  # at two sampled steps one after the other
STALE_ONCE = 5.0  # at one
STALE_AT_ENDS = 2.0  # times the former
STALE_BEFORE_SPIKE = 2.3
STALE_PRECEDES = 8  # steps

# Parameter groups: rates and decays are chosen; one block's alone differs by mistake, or by a factor that is meant to be seen.
RATE_APART = 3.0
DECAY_APART = 3.0

# Biases: growth over the last half of a run that is told, and the cosine between sampled steps that means one direction.
BIAS_DRIFT = 1.5
BIAS_DRIFT_COSINE = 0.99
COHERENCE_NOTED = 4.0  # times what random directions give
# Gradient of a bias over the largest of its branch, below which it is float32 rounding: key biases had up to 1.4e-7, one in
# a block that diverged 5e-6, a query's bias 8e-6. bfloat16's rounding is larger, and tells nothing.
NO_GRADIENT = 1e-6

# Share of a write's energy that is rounded away: ulp^2 / (12 write^2). 1/2 is a write of 0.41 ulp, about where single elements
# are lost whole; 1/4 is 0.58 ulp; a hundredth is 2.9 ulps, of which nothing needs be said. Sound bf16 runs had at most .0008.
ROUNDED_MOST = 0.5
ROUNDED_HIGH = 0.25
ROUNDED_NOTED = 0.01
ROUNDED_GROWS = 2.0  # from the first block to the last

# Idle: in sound runs at width 64 every block turns the states by .022 of a half turn and more; no limit is published for one.
IDLE_ANGLE = 0.01
IDLE_SIBLINGS = 4.0
BRANCH_CARRIES = 0.5  # of the gradient's energy: more than the skip

# Depth of the dip: the least value of each function. Nearer its bottom than this share, its slope is below .2.
ACTIVATION_DIPS = {"gelu": 0.17, "silu": 0.2785, "mish": 0.3089}
TRAPPED = 0.8

LOG_Z_DRIFTED = 2.0  # times where it began

# Error of a branch's write under bf16 autocast: 1.5e-3 to 6.4e-3 in 18 kinds of small models, fresh or trained for 40 steps, and
# never more than 1.7 times the median of its siblings.
BF16_APART = 4.0
BF16_MATTERS = 0.03

# Between two checkpoints blocks change by factors that differ with depth; one that changed by half as much again as any other is
# looked at. Chosen: no paper gives one.
DRIFT_APART = 1.5
# Attribution. Completeness error above which no part is named before another: sound integrals err by less than 1 %.
INCOMPLETE = 0.05
# Standard errors over the examples of a batch by which a knock-out must raise the loss to be more than chance.
KNOCK_OUT_CERTAIN = 3.0
