"""What a type checker catches: each line that is marked, and no other. It is never run."""

from __future__ import annotations

import fastdiff

model = fastdiff.load("fashion-mnist")
image = fastdiff.sample(model, 1)[0]
fastdiff.sample(model, 4, sampler="dmpp")  # wrong
fastdiff.sample(model, 4, stesp=20)  # wrong
fastdiff.sample(model, 4, predicts="noise")  # wrong
fastdiff.sample(model, 4, condition=image)  # wrong
fastdiff.Sampler(model, sampler="dmpp")  # wrong
fastdiff.Sampler(model)(4, clases=3)  # wrong
fastdiff.Sampler(model).batches(4, clases=3)  # wrong
fastdiff.sample_batches(model, 4, batchsize=2)  # wrong
fastdiff.encode(model, image, spacing="karas")  # wrong
fastdiff.inpaint(model, image, image, repeat=3)  # wrong
fastdiff.inpaint(model, image, image, condition=None)  # wrong
fastdiff.denoise(model, image, 0.5, schedule="annealled")  # wrong
fastdiff.interpolate(model, 3, 7, time="sigmas")  # wrong
fastdiff.cascade(model, model, 4, upsampler_options={"stesp": 10})  # wrong
fastdiff.upsample(model, image, precision="half")  # wrong
fastdiff.load("fashion-mnist", devise="cpu")  # wrong
fastdiff.load("fashion-mnist", image_size="64")  # wrong
print(model.config.num_clases)  # wrong
