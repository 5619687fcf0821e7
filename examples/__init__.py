"""Programs that use keepstep as an application would."""
