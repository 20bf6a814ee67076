"""Train any recipe: python train_imagenet.py --config rn_configs/rn18_ucb.yaml [--section.key=value ...]

Go on with a run that was interrupted: python train_imagenet.py --resume runs/rn18_ucb
"""

from ffcv_prune.commands import train

if __name__ == "__main__":
    train()
