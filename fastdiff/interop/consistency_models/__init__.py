"""consistency_models' public modules (its package ``cm``) on fastdiff; what is missing here is guided-diffusion's."""
