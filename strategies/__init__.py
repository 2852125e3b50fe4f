"""The strategies that come with clbench; installed as `clbench_strategies`."""
