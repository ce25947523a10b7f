"""What a probe says, in sentences, of a loop that uses it in a way that leaves something unmeasured."""

from .taps import MOST_READINGS

MANY_FORWARDS = (
    f"Expected probe.step(loss) after every optimizer.step(), got {MOST_READINGS} forwards without one: they are recorded as "
    "one step, and the following are not. Call probe.step(loss) in the training loop."
)
NEVER_STEPPED = (
    "Expected probe.step(loss) after every optimizer.step(), got none: all forwards are recorded as one step. Call "
    "probe.step(loss) in the training loop."
)
NEVER_FORWARDED = (
    "Expected forwards of the attached {} in training mode and with gradients, got none before probe.step(loss): only the "
    "loss is recorded. Attach to the module that the loop calls, in train(); one compiled whole by model.compile() shows no "
    "forward, torch.compile(model) does; nor does one that reentrant checkpointing wraps as a whole."
)
NO_UPDATE = (
    "Expected optimizer.step() before probe.step(loss), got none: parameters are not measured in such steps. A loss "
    "scaler that skips a step leaves this too: pass it as scaler= to attach."
)
REPEATED_BACKWARD = (
    "Expected one backward through each forward, got several: gradients are those of the last alone. Add the losses up "
    "before one backward to measure their sum."
)
GRADIENTS_GONE = (
    "Expected the gradients of the backward to be there still when parameters are read, got none: whether a parameter had "
    "one, and how large, is not known. Pass the optimizer to attach, or call probe.step(loss) before zero_grad(); where "
    "optimizers step inside the backward, only weights can be measured."
)
LEFT_OPEN = (
    "The program ended without probe.close(): the recording was closed as it ended. Use attach in a with statement."
)
