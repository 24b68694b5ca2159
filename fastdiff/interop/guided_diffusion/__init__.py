"""guided-diffusion's public modules on fastdiff: scripts need another import line, or ``fastdiff run``, and no more."""
