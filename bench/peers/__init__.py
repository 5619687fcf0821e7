"""The same workloads on other servers, beside keepstep in the same session."""
