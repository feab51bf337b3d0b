"""A search: space, objective, sampler, scheduler, resources and their checks."""
