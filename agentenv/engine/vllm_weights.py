"""Our back end of vLLM's weight transfer, `agentenv_shm`: in every worker, it loads weights from shared memory.

vLLM finds `register` through the entry point group `vllm.general_plugins`, in whichever environment it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import (  # pyright: ignore[reportMissingImports]
    WeightTransferEngineFactory,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.model_loader.reload import (  # pyright: ignore[reportMissingImports]
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import (  # pyright: ignore[reportMissingImports]
    get_layerwise_info,
)

from agentenv.engine.shared_weights import SharedWeightsInfo, received_weights
from agentenv.engine.vllm_owner import end_with_owner
from agentenv.engine.vllm_settings import OLD_WEIGHTS_SERVE, SHM_BACKEND
from agentenv.errors import EngineError, describe

_NUM_SHOWN = 3


def register() -> None:
    """Make `agentenv_shm` known to vLLM, and its processes end with their owner; may be called any number of times."""
    end_with_owner()
    if SHM_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(SHM_BACKEND, SharedMemoryTransfer)


@dataclass
class SharedMemoryInit(WeightTransferInitInfo):
    """Nothing has to be agreed on before the first update."""


@dataclass
class SharedMemoryUpdate(WeightTransferUpdateInfo):
    """One update: the JSON form of `SharedWeightsInfo`."""

    weights: dict[str, Any]


class SharedMemoryTransfer(WeightTransferEngine):
    """Checks buckets of weights against what their sender said and loads them, all within one `update_weights`.

    Everything that can be checked is checked before the first weight changes. vLLM swaps layer by layer, so a failure
    after that leaves a mixture: the error then does not carry `OLD_WEIGHTS_SERVE`, and the sender must not let the
    engine serve until a later update succeeded.
    """

    init_info_cls = SharedMemoryInit
    update_info_cls = SharedMemoryUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: SharedMemoryInit) -> None:
        """Do nothing: there is no connection."""

    def start_weight_update(self) -> None:
        """Do nothing: the layers are opened only after all buckets have been checked."""

    def receive_weights(self, update_info: SharedMemoryUpdate) -> None:
        """Check and load.

        Raises:
            EngineError: with `OLD_WEIGHTS_SERVE` in its text where nothing has changed.
        """
        try:
            info = SharedWeightsInfo.from_json(update_info.weights)
            tensors = received_weights(info, device=self.device)
            self._compare_with_checkpoint(tensors)
            self._load(tensors)
        except EngineError as error:
            raise EngineError(f"{error} {'' if _has_changed(error) else OLD_WEIGHTS_SERVE}".rstrip()) from error

    def finish_weight_update(self) -> None:
        """Do nothing: `receive_weights` left the layers closed."""

    def shutdown(self) -> None:
        """Do nothing: no file is open between updates."""

    def _compare_with_checkpoint(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse names or shapes that the model's own checkpoint does not have, where it is a local folder.

        Models for pictures are left out: their checkpoints may name parameters otherwise than the model does in memory.
        """
        expected = _checkpoint_shapes(Path(self.model_config.model))
        wrong = [
            f"{name} is {tuple(tensor.shape)}, the engine has {expected[name]}"
            for name, tensor in tensors.items()
            if name in expected and tuple(tensor.shape) != expected[name]
        ]
        if not wrong and expected and not self.model_config.is_multimodal_model:
            # a tied output embedding stands in some checkpoints and in others not
            tied = {"lm_head.weight"} if self.model_config.hf_config.tie_word_embeddings else set()
            wrong = [f"{name} is unknown" for name in sorted(set(tensors) - set(expected) - tied)]
            wrong += [f"{name} is missing" for name in sorted(set(expected) - set(tensors) - tied)]
        if wrong:
            more = f" and {len(wrong) - _NUM_SHOWN} more" if len(wrong) > _NUM_SHOWN else ""
            raise EngineError(f"weights do not fit the engine's model: {'; '.join(wrong[:_NUM_SHOWN])}{more}.")

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        # vLLM wraps what adapters may change; checkpoints and loaders do not know of the wrapper
        names = {name.replace(".base_layer.", ".") for name, _ in self.model.named_parameters()}
        names = {name for name in names if "lora_" not in name}
        initialize_layerwise_reload(self.model)
        num_open = _num_open(self.model)
        try:
            loaded = self.model.load_weights(iter(tensors.items()))
        except Exception as error:  # whatever a model's loader raises
            has_changed = _num_open(self.model) < num_open
            _put_back(self.model)
            finalize_layerwise_reload(self.model, self.model_config)
            raise _failure(f"vLLM could not load the weights: {describe(error)}.", has_changed=has_changed) from error
        finalize_layerwise_reload(self.model, self.model_config)
        refresh_tied_embeddings(self.model)
        if loaded is not None and names - loaded:
            missing = sorted(names - loaded)[:_NUM_SHOWN]
            raise _failure(f"vLLM got no weights for {', '.join(missing)}.", has_changed=True)


def refresh_tied_embeddings(model: nn.Module) -> None:
    """Process again what the weights of a tied embedding were processed into.

    On a CPU the output embedding multiplies by a packed copy of its weight. A tied one is given no weights of its own
    in an update, so layerwise reloading leaves its copy as it was, and generation goes on with the old values.
    Processing an unquantised embedding does nothing but make that copy.
    """
    embeddings = [
        module
        for module in model.modules()
        if isinstance(getattr(module, "quant_method", None), UnquantizedEmbeddingMethod)
    ]
    owners = Counter(id(module.weight) for module in embeddings)
    for module in embeddings:
        if owners[id(module.weight)] > 1:
            method: Any = module.quant_method
            method.process_weights_after_loading(module)


def _checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the folder's safetensors files by name; empty where there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}  # the folder may have been changed since the engine started; vLLM's own loader checks what is left
    return shapes


def _num_open(model: nn.Module) -> int:
    return sum(get_layerwise_info(layer).can_load() for layer in model.modules())


def _put_back(model: nn.Module) -> None:
    """Forget what layers collected but did not take, so that closing them puts the old weights back."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            info.loaded_weights.clear()
            info.load_numel = 0


def _failure(message: str, *, has_changed: bool) -> EngineError:
    error = EngineError(message)
    if has_changed:
        error.add_note(_CHANGED)
    return error


def _has_changed(error: EngineError) -> bool:
    return _CHANGED in getattr(error, "__notes__", ())


_CHANGED = "some layers have the new weights"
