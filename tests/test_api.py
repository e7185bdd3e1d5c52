"""The public surface: names, docstrings, signatures, and who imports whom."""

import ast
import inspect
import itertools
import re
import sys
import typing
from pathlib import Path

import pytest
from processes import said

import lamaml_jax as lm
from lamaml_jax.options import LamamlOptions, MetaOptions

PACKAGE = Path(lm.__file__).parent
ROOT = PACKAGE.parent

BASE = {"checks", "types"}
# Module -> the modules of ours that it may import.
MAY_IMPORT = {
    "types": set(),
    "checks": {"types"},
    **{
        name: BASE
        for name in (
            "batching",
            "clipping",
            "losses",
            "memory",
            "metrics",
            "utility",
            "variance_reduction",
        )
    },
    "step_sizes": BASE | {"grain"},
    "slots": {"types"},
    "reservoir": BASE | {"memory", "slots"},
    "balanced_reservoir": BASE | {"memory", "reservoir", "slots"},
    "scans": BASE,
    "grain": BASE,
    "inner_step": BASE | {"grain", "losses"},
    "inner": BASE | {"inner_step", "losses", "scans"},
    "recursion": BASE | {"grain", "inner_step", "scans"},
    "meta": BASE | {"inner", "inner_step", "losses", "recursion", "scans"},
    "diagnostics": BASE | {"losses"},
    "mixing": BASE | {"grain", "losses"},
    "info": BASE | {"meta"},
    "options": BASE | {"inner_step", "memory"},
    "transform": BASE
    | {
        "batching",
        "clipping",
        "info",
        "losses",
        "meta",
        "options",
        "memory",
        "step_sizes",
        "variance_reduction",
    },
    "variants": {"options", "step_sizes", "transform", "types"},
    "learner": BASE
    | {
        "batching",
        "clipping",
        "inner",
        "losses",
        "meta",
        "reservoir",
        "step_sizes",
        "transform",
        "variants",
    },
}
OUTSIDE = {"chex", "jax", "optax"}


def public_functions():
    """Every public function, by its full public name."""
    found = {}
    for name in lm.__all__:
        value = getattr(lm, name)
        if inspect.isfunction(value):
            found[name] = value
        elif inspect.ismodule(value):
            for inner, function in vars(value).items():
                ours = getattr(function, "__module__", None) == value.__name__
                if ours and inspect.isfunction(function) and not inner.startswith("_"):
                    found[f"{name}.{inner}"] = function
    return found


def written_parameters(function):
    """Parameters as they are written, where the signature shows handed-on options."""
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    has_options = code.co_flags & inspect.CO_VARKEYWORDS
    return code.co_varnames[: count + bool(has_options)]


def is_named_tuple(value):
    return inspect.isclass(value) and issubclass(value, tuple)


FUNCTIONS = public_functions()
NAMED_TUPLES = {
    name: getattr(lm, name) for name in lm.__all__ if is_named_tuple(getattr(lm, name))
}
# Switches, sizes and options are passed by name; what every call needs, by position.
POSITIONAL = {
    "adapt": ["loss_fn", "weights", "step_sizes", "support", "support_mask"],
    "clip_meta_grads": ["max_norm"],
    "cmaml": ["loss_fn"],
    "diagnostics.gradient_alignment": ["loss_fn", "weights", "batches", "masks"],
    "diagnostics.gradient_variance": ["grad_fn", "keys"],
    "diagnostics.task_gradients": ["loss_fn", "weights", "batches", "masks"],
    "join_replay": ["replayed", "replay_mask", "batch", "batch_mask"],
    "lamaml": ["loss_fn"],
    "lamaml_learner": ["tx"],
    "lamaml_transform": ["loss_fn"],
    "losses.accuracy": ["logits", "labels", "mask"],
    "losses.asymmetric_cross_entropy": ["logits", "labels", "is_replayed", "mask"],
    "losses.masked_cross_entropy": ["logits", "labels", "classes"],
    "losses.masked_mean": ["values", "mask"],
    "losses.mean_loss": ["loss_fn", "weights", "batch", "mask", "row_weights"],
    "losses.with_extras": ["function"],
    "losses.multi_head_cross_entropy": [
        "logits",
        "labels",
        "tasks",
        "classes_per_task",
    ],
    "make_balanced_reservoir": ["capacity", "example"],
    "make_reservoir": ["capacity", "example"],
    "meta_value_and_grad": ["loss_fn"],
    "metrics.anytime_accuracy": ["accuracy", "tasks"],
    "metrics.average_anytime_accuracy": ["accuracy", "tasks"],
    "metrics.backward_transfer_interference": ["accuracy"],
    "metrics.forgetting": ["accuracy"],
    "metrics.forward_transfer": ["accuracy", "initial_accuracy"],
    "metrics.learning_accuracy": ["accuracy"],
    "metrics.minimum_accuracy": ["accuracy", "tasks"],
    "metrics.retained_accuracy": ["accuracy"],
    "metrics.stability_gap": ["accuracy", "tasks"],
    "metrics.worst_case_accuracy": ["accuracy", "tasks"],
    "mixing.look_ahead_points": ["weights", "gradients", "mixtures", "step_sizes"],
    "mixing.min_norm_gradient": ["gradients", "mask"],
    "mixing.min_norm_weights": ["gradients", "mask"],
    "mixing.soft_maximum_value_and_grad": ["loss_fn", "points", "batch", "mask"],
    "observe_stream": ["learner", "key", "state", "batches", "batch_masks", "first"],
    "scale_by_step_sizes": ["init", "step_size_tx"],
    "scale_by_utility": ["decay", "noise_scale"],
    "split_support": ["key", "batch", "batch_mask", "inner_steps"],
    "sync_lamaml": ["loss_fn"],
    "variance_reduced": ["value_and_grad", "momentum"],
    "weigh_rows": ["replay_mask", "batch_mask", "replay_weight"],
}


def parse(path):
    return ast.parse(path.read_text())


def imported_modules(tree):
    """Absolute dotted names of all imports, ``from a import b`` as ``a.b``."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


# Names ----------------------------------------------------------------------------


def test_all_is_sorted_and_has_every_public_name():
    assert lm.__all__ == sorted(lm.__all__)
    assert len(set(lm.__all__)) == len(lm.__all__)
    tree = parse(PACKAGE / "__init__.py")
    imported = [
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(imported) == lm.__all__
    for name in lm.__all__:
        assert getattr(lm, name) is not None


def test_init_holds_no_logic():
    for node in parse(PACKAGE / "__init__.py").body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        names = isinstance(node, ast.Assign) and node.targets[0].id in (
            "__all__",
            "__version__",
        )
        assert docstring or names or isinstance(node, ast.ImportFrom)


def test_public_functions_are_all_listed():
    assert set(FUNCTIONS) == set(POSITIONAL)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_what_every_call_needs_is_positional(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    positional = [
        p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    assert positional == POSITIONAL[name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_switches_are_keyword_only(name):
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if isinstance(parameter.default, bool | str):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_default_is_a_key(name):
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if parameter.name == "key":
            assert parameter.default in (inspect.Parameter.empty, None)


# Docstrings -----------------------------------------------------------------------


def section(docstring, title):
    """Lines of one Google section, or None."""
    match = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
    return None if match is None else match.group(1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_its_sections_and_every_argument(name):
    function = FUNCTIONS[name]
    docstring = inspect.getdoc(function)
    assert docstring is not None
    assert docstring.splitlines()[0].endswith((".", ":"))
    parameters = inspect.signature(function).parameters
    if not parameters:
        return
    for title in ("Args", "Returns", "Raises"):
        assert section(docstring, title), f"no section {title}"
    described = re.findall(r"^    \*{0,2}(\w+):", section(docstring, "Args"), re.M)
    # In the order of the signature, each once, and nothing that is no argument; where
    # options are handed on, those that the function has itself will do.
    assert described in (list(parameters), list(written_parameters(function)))


@pytest.mark.parametrize("name", NAMED_TUPLES)
def test_named_tuple_fields_are_documented_or_speak_for_themselves(name):
    cls = NAMED_TUPLES[name]
    assert cls.__doc__ and not cls.__doc__.startswith(f"{name}(")
    source = ast.parse(inspect.getsource(cls)).body[0].body
    documented = {
        field.target.id
        for field, after in itertools.pairwise(source)
        if isinstance(field, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    # Extremes say what they are; a state or container named as its type does too.
    plain = {"step_size_min", "step_size_max"} | {
        field for field in cls._fields if field.endswith("_state")
    }
    undocumented = set(cls._fields) - documented - plain
    named_by_type = {
        field
        for field in undocumented
        if field.replace("_", "") in str(cls.__annotations__[field]).lower()
    }
    assert undocumented == named_by_type


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_annotated(name):
    hints = typing.get_type_hints(FUNCTIONS[name])
    assert set(hints) == {*written_parameters(FUNCTIONS[name]), "return"}


@pytest.mark.parametrize(
    ("options", "function"),
    [
        (MetaOptions, lm.meta_value_and_grad),
        (LamamlOptions, lm.lamaml_transform),
    ],
)
def test_typed_options_are_those_of_the_function_that_takes_them(options, function):
    taken = inspect.signature(function).parameters
    assert set(options.__annotations__) <= set(taken)
    own = {"loss_fn", "step_size_init", "step_size_tx", "weight_tx"}
    assert set(taken) - set(typing.get_type_hints(options)) <= own


@pytest.mark.parametrize("variant", [lm.lamaml, lm.sync_lamaml, lm.cmaml])
def test_variants_show_every_option_with_its_default(variant):
    shown = inspect.signature(variant).parameters
    offered = inspect.signature(lm.lamaml_transform).parameters
    for name in typing.get_type_hints(LamamlOptions):
        assert shown[name].default == offered[name].default


# Imports --------------------------------------------------------------------------


def test_every_module_has_a_rule():
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set(MAY_IMPORT)
    assert not list(PACKAGE.glob("*/*.py"))


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_module_imports_only_what_lies_below_it(name):
    for imported in imported_modules(parse(PACKAGE / f"{name}.py")):
        top, *rest = imported.split(".")
        if top == "lamaml_jax":
            assert rest[0] in MAY_IMPORT[name], f"{name} imports {imported}"
        else:
            assert top in OUTSIDE | sys.stdlib_module_names, f"{name}: {imported}"


def test_library_does_not_compile_print_or_configure():
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(parse(path)):
            assert not isinstance(node, ast.Assert | ast.Global), path.name
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "jax.jit", "jax.debug.print"), path.name
                assert "jax.config" not in called, path.name


EXPERIMENTS = sorted((ROOT / "experiments").rglob("*.py"))


@pytest.mark.parametrize(
    "path", EXPERIMENTS, ids=[str(path.relative_to(ROOT)) for path in EXPERIMENTS]
)
def test_experiments_use_public_names_under_one_alias(path):
    tree = parse(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "lamaml_jax":
                    assert (alias.name, alias.asname) == ("lamaml_jax", "lm")
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] != "lamaml_jax"
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "lm"
        ):
            assert node.attr in {*lm.__all__, "__version__"}, f"lm.{node.attr}"


# The package ----------------------------------------------------------------------


@pytest.mark.slow
def test_import_starts_no_backend_and_loads_nothing_heavy():
    program = """
import sys
import lamaml_jax
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
heavy = {
    "equinox", "flax", "matplotlib", "sklearn", "tensorflow",
    "tensorflow_datasets", "experiments",
}
found = heavy & set(sys.modules)
assert not found, found
"""
    said([sys.executable, "-c", program], ROOT, ROOT)


def test_type_marker_is_shipped():
    assert (PACKAGE / "py.typed").is_file()
    pyproject = ROOT / "pyproject.toml"
    assert 'lamaml_jax = ["py.typed"]' in pyproject.read_text()


def test_version_is_written_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", lm.__version__)
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in pyproject
    assert 'version = { attr = "lamaml_jax.__version__" }' in pyproject
    assert lm.__version__ not in pyproject
    holders = [
        path.name for path in PACKAGE.glob("*.py") if lm.__version__ in path.read_text()
    ]
    assert holders == ["__init__.py"]
