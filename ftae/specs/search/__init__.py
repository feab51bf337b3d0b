"""A search: space, objective, sampler, scheduler, resources, and its checks."""
