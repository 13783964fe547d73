"""`tessera evaluate`: loss per source beside the unigram entropy, and masks filled."""

from collections.abc import Iterator, Sequence

from tessera.config import ConfigError, load


def lines(models: Sequence[str], config_path: str | None, texts: Sequence[str]) -> Iterator[str]:
    """The lines to print: a table per model, then each text with its likeliest completions."""
    if config_path is None and not texts:
        raise ConfigError("nothing to do: give --config YAML for losses, --fill TEXT for masks")
    # Filled first, which takes seconds: a text without a mask is not to be found out an hour later.
    filled = [line for model in models for line in _fills(model, texts)] if texts else []
    if config_path is not None:
        yield from _losses(models, config_path)
    yield from filled


def _losses(models: Sequence[str], config_path: str) -> Iterator[str]:
    from tessera.checkpoints import load_model
    from tessera.data.validation import evaluation_batches
    from tessera.evaluation.masked_lm import score
    from tessera.tokenizer import load_tokenizer
    from tessera.training.config import RunConfig

    config = load(RunConfig, config_path)
    tokenizer = load_tokenizer(config.tokenizer)
    rate = config.evaluation.masking_rate
    yield f"masked-LM loss in nats on the validation documents, {rate:.0%} masked"
    yield f"{'model':<40} {'source':<10} {'loss':>7} {'right':>6} {'unigram entropy':>16}"
    for path in models:
        model = load_model(path)
        for name, source in config.train_data.sources.items():
            if source.validation_split is None:
                continue
            batches = evaluation_batches(
                config.train_data,
                name,
                tokenizer,
                vocab_size=config.model.vocab_size,
                masking_rate=rate,
                max_tokens=config.evaluation.max_tokens,
                seed=config.seed,
                rank=0,
                world_size=1,
            )
            scored = score(model, batches, tokenizer.special_ids.tolist())
            yield (
                f"{path:<40} {name:<10} {scored.loss:>7.3f} {scored.accuracy:>6.1%} "
                f"{scored.unigram_entropy:>16.3f}"
            )


def _fills(model: str, texts: Sequence[str]) -> Iterator[str]:
    from tessera.evaluation.fill_mask import fill_masks

    answers = fill_masks(model, texts)
    yield f"\n{model} fills"
    for filled in answers:
        guesses = ", ".join(f"{token!r} {share:.0%}" for token, share in filled.guesses)
        yield f"  {filled.text}\n    {guesses}"
