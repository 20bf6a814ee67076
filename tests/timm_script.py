"""A short train.py with the names of timm's own. It does not know ffcv_prune.

test_adapter_timm.py applies the diff of docs/frameworks.md to it.
"""

import torch
from timm.data import FastCollateMixup, create_dataset, create_loader, resolve_data_config
from timm.loss import SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2


def _set_loader_epoch(loader, epoch):
    """To whatever draws the order, as timm does."""
    if hasattr(loader.dataset, "set_epoch"):
        loader.dataset.set_epoch(epoch)
    if hasattr(loader.batch_sampler, "set_epoch"):
        loader.batch_sampler.set_epoch(epoch)
    elif hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)


def main(args):
    """Yields its variables after each epoch: the length of the loader beforehand, and the batches of it."""
    torch.manual_seed(args.seed)
    model = create_model(args.model, num_classes=args.num_classes)
    data_config = resolve_data_config(vars(args), model=model)
    dataset_train = create_dataset(args.dataset, root=args.data_dir, split=args.train_split, is_training=True)
    mixup = FastCollateMixup(mixup_alpha=1.0, label_smoothing=0.0, num_classes=args.num_classes) if args.mixup else None
    loader_train = create_loader(
        dataset_train,
        data_config["input_size"],
        args.batch_size,
        is_training=True,
        scale=(0.5, 1.0),
        re_prob=0.5,
        mean=data_config["mean"],
        std=data_config["std"],
        num_workers=args.workers,
        distributed=args.distributed,
        collate_fn=mixup,
        use_prefetcher=args.prefetcher,
        device=torch.device("cpu"),
        input_size_choices=args.train_img_sizes,
    )
    loss_fn = SoftTargetCrossEntropy() if mixup else torch.nn.CrossEntropyLoss()
    optimizer = create_optimizer_v2(model, "sgd", lr=0.01)
    if args.distributed:
        model = torch.nn.parallel.DistributedDataParallel(model)
    lr_scheduler, num_epochs = create_scheduler_v2(
        optimizer, num_epochs=args.epochs, warmup_epochs=args.warmup_epochs, warmup_prefix=True
    )
    start_epoch = 0

    results = []
    try:
        for epoch in range(start_epoch, num_epochs):
            _set_loader_epoch(loader_train, epoch)
            if mixup and epoch == num_epochs - 1:
                loader_train.mixup_enabled = False
            model.train()
            length = len(loader_train)
            batches = []
            for images, target in loader_train:
                loss_fn(model(images), target).backward()
                optimizer.step()
                optimizer.zero_grad()
                batches.append((images, target))
            lr_scheduler.step(epoch + 1)
            results.append(optimizer.param_groups[0]["lr"])
            yield locals()
    except KeyboardInterrupt:
        pass
