"""What the C kernel offers; addresses are those of tensors that the caller keeps alive."""

def moments(
    data: int,
    rows: int,
    width: int,
    kind: int,
    out: int,
    flags: int,
    n_threads: int,
    partner: int = ...,
    factor: float = ...,
    pair: int = ...,
    /,
) -> None: ...
def squares(data: int, n: int, out: int, peak: int, /) -> None: ...
def distance(left: int, right: int, n: int, out: int, /) -> None: ...
def adam(table: int, n_rows: int, lr: float, beta_1: float, beta_2: float, eps: float, decay: float, /) -> None: ...
def turns(table: int, n_rows: int, /) -> None: ...
def tokens(
    state: int,
    sequences: int,
    tokens: int,
    width: int,
    apart: int,
    following: int,
    mask: int,
    inverse: int,
    before: int,
    inverse_before: int,
    apart_before: int,
    following_before: int,
    out: int,
    /,
) -> None: ...
def log_z(data: int, rows: int, width: int, stride: int, out: int, /) -> None: ...
def bound(*numbers: float) -> None: ...
