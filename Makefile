# make demo | test | test-gpu | lint | sanitize | cuda | cuda_on_cpu | bench-report | clean.
# Everything lives in .venv and build/, and is quick when run again.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py

.PHONY: demo test test-gpu lint sanitize cuda cuda_on_cpu bench-report clean
.DELETE_ON_ERROR:

demo: .venv/plot.stamp .venv/build.stamp
	$(BIN)/python examples/demo.py $(if $(IN),--input $(IN))

test: .venv/test.stamp .venv/build.stamp cuda_on_cpu
	$(BIN)/python -m pytest $(ARGS)

# The kernels' tests on this machine's GPU. Needs no environment of its own and no internet: nvcc, and PYTHON with torch,
# numpy, scipy, safetensors, pybind11, cmake, ninja and pytest.
GPU_TESTS := tests/test_gated_stack.py tests/test_wavenet_sample.py
test-gpu:
	FASTWAVE_CUDA=1 FASTWAVE_CUDA_ARCHITECTURES=native $(PYTHON) setup.py -q build_ext --inplace
	$(PYTHON) -m pytest $(GPU_TESTS) tests/test_build.py tests/test_parallel_models.py tests/test_graphs.py -k cuda $(ARGS)
	! command -v compute-sanitizer || for tool in memcheck racecheck; do compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PYTHON) -m pytest $(GPU_TESTS) -k "cuda and (less_precision and gaussian or \
	        test_gated_stack[ and (plain or centred or separable or interpolated))" $(ARGS) || exit 1; done

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

# The tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer, then those of the threads under TSan.
sanitize: .venv/test.stamp
	$(BIN)/python tools/sanitize.py

# Compiles every CUDA file for all architectures and imports the result; needs nvcc, but no GPU.
cuda: .venv/venv.stamp
	$(BIN)/cmake -S . -B build-cuda -G Ninja -DFASTWAVE_CUDA=ON -DFASTWAVE_WERROR=$(or $(FASTWAVE_WERROR),0) \
	    -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -Dpybind11_DIR=$$($(BIN)/pybind11-config --cmakedir)
	$(BIN)/cmake --build build-cuda --target _cuda probes
	PYTHONPATH=build-cuda $(BIN)/python -c "import _cuda; print('CUDA devices:', _cuda.devices())"

# The CUDA module on an emulated device, for the tests (tests/cuda_on_cpu); needs neither nvcc nor a GPU.
cuda_on_cpu: .venv/venv.stamp
	$(BIN)/cmake -S tests/cuda_on_cpu -B build/cuda_on_cpu -G Ninja -DFASTWAVE_WERROR=$(or $(FASTWAVE_WERROR),0) \
	    -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -Dpybind11_DIR=$$($(BIN)/pybind11-config --cmakedir)
	$(BIN)/cmake --build build/cuda_on_cpu

# The tables of README.md and docs/kernels.md, and the plots, from benchmarks/results/.
bench-report: .venv/bench.stamp .venv/build.stamp
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf .venv build build-cuda *.egg-info fastwave/*.so

# The build requirements are installed beside the rest, so that the build directory outlives one pip call; numpy and cython
# are those of pesq, which comes as source.
.venv/venv.stamp: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt setuptools pybind11 cmake ninja numpy cython
	touch $@

.venv/build.stamp: .venv/venv.stamp $(SOURCES)
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@

.venv/bench.stamp .venv/plot.stamp .venv/test.stamp: .venv/%.stamp: .venv/venv.stamp pyproject.toml | .venv/build.stamp
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e .[$*]
	touch $@
