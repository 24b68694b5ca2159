"""In the manner of guided-diffusion's script of this name: train a classifier on noisy images."""

import argparse
import os

import blobfile as bf
import torch as th
import torch.distributed as dist
import torch.nn.functional as F
from guided_diffusion import dist_util, logger
from guided_diffusion.fp16_util import MixedPrecisionTrainer
from guided_diffusion.image_datasets import load_data
from guided_diffusion.resample import create_named_schedule_sampler
from guided_diffusion.script_util import (
    add_dict_to_argparser,
    args_to_dict,
    classifier_and_diffusion_defaults,
    create_classifier_and_diffusion,
)
from guided_diffusion.train_util import log_loss_dict, parse_resume_step_from_filename
from torch.nn.parallel.distributed import DistributedDataParallel as DDP
from torch.optim import AdamW


def main():
    args = parser().parse_args()
    dist_util.setup_dist()
    logger.configure()
    model, diffusion = create_classifier_and_diffusion(
        **args_to_dict(args, classifier_and_diffusion_defaults().keys())
    )
    model.to(dist_util.dev())
    sampler = create_named_schedule_sampler(args.schedule_sampler, diffusion) if args.noised else None
    start = parse_resume_step_from_filename(args.resume_checkpoint) if args.resume_checkpoint else 0
    if args.resume_checkpoint and dist.get_rank() == 0:
        model.load_state_dict(dist_util.load_state_dict(args.resume_checkpoint, map_location=dist_util.dev()))
    dist_util.sync_params(model.parameters())
    trainer = MixedPrecisionTrainer(
        model=model, use_fp16=args.classifier_use_fp16, initial_lg_loss_scale=16.0
    )
    together = DDP(model, bucket_cap_mb=128, broadcast_buffers=False, find_unused_parameters=False)
    data = load_data(
        data_dir=args.data_dir,
        batch_size=args.batch_size,
        image_size=args.image_size,
        class_cond=True,
        random_crop=True,
    )
    opt = AdamW(trainer.master_params, lr=args.lr, weight_decay=args.weight_decay)
    for step in range(args.iterations - start):
        logger.logkv("step", step + start)
        batch, extra = next(data)
        labels, batch = extra["y"].to(dist_util.dev()), batch.to(dist_util.dev())
        t = th.zeros(batch.shape[0], dtype=th.long, device=dist_util.dev())
        if args.noised:
            t, _ = sampler.sample(batch.shape[0], dist_util.dev())
            batch = diffusion.q_sample(batch, t)
        loss = F.cross_entropy(together(batch, timesteps=t), labels, reduction="none")
        log_loss_dict(diffusion, t, {"train_loss": loss.detach()})
        trainer.zero_grad()
        trainer.backward(loss.mean())
        trainer.optimize(opt)
        logger.dumpkvs()
    if dist.get_rank() == 0:
        name = bf.join(logger.get_dir(), f"model{args.iterations:06d}.pt")
        th.save(trainer.master_params_to_state_dict(trainer.master_params), name)
        th.save(opt.state_dict(), os.path.join(logger.get_dir(), f"opt{args.iterations:06d}.pt"))
    dist.barrier()


def parser():
    defaults = {
        "data_dir": "",
        "noised": True,
        "iterations": 2,
        "lr": 3e-4,
        "weight_decay": 0.0,
        "batch_size": 4,
        "schedule_sampler": "uniform",
        "resume_checkpoint": "",
    }
    defaults.update(classifier_and_diffusion_defaults())
    result = argparse.ArgumentParser()
    add_dict_to_argparser(result, defaults)
    return result


if __name__ == "__main__":
    main()
