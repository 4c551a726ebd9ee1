"""Whether this process may record steps as CUDA graphs: a worker refuses where its check finds that they differ."""

_is_refused = False


def refuse() -> None:
    """From now on every step of this process is sent to the device one by one."""
    global _is_refused
    _is_refused = True


def is_allowed() -> bool:
    """Whether steps may be recorded."""
    return not _is_refused
