"""Azure ML: the pipeline published, runs submitted to it and watched, failures explained.

The only package that knows azure-ai-ml, and the only place where a run is called a job.
"""
