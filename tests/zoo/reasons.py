"""Why the hidden-states oracle does not apply to a type as it stands, one sentence each, read off its source."""

REASONS: dict[str, str] = {}
