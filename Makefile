# Carousel: one Makefile, all output in build/. `make help` lists the targets.
#
# Variants: SAN=address,undefined | SAN=thread builds into build/san-*; CC=clang is used for fuzzing.
# CUDA=auto takes nvcc where there is one; CUDA=emulated builds into build/emulated* and runs kernels on the CPU (tests).
# Changed flags rebuild: every object depends on a stamp that holds the compile line.

CC      ?= gcc
PREFIX  ?= /usr/local
SAN     ?=
OPT     ?= -O3
FUZZ_SECONDS ?= 10
VERSION := 0.1.0

empty :=
comma := ,
space := $(empty) $(empty)

# CUDA: auto | no | emulated. Sanitizer builds have no CUDA of their own accord: their runtimes do not like the driver.
CUDA  ?= auto
NVCC  ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
ifeq ($(filter auto no emulated,$(CUDA)),)
$(error CUDA=$(CUDA): auto, no or emulated)
endif
CUDA_KIND := $(if $(filter auto,$(CUDA)),$(if $(and $(NVCC),$(if $(SAN)$(findstring clang,$(CC)),,y)),real,no),$(CUDA))

# Objects that do not know of CUDA lie in BASE: an emulated build shares them with the ordinary one.
BASE  := build/$(if $(SAN),san-$(subst $(comma),-,$(SAN)),release)
BUILD := $(if $(filter emulated,$(CUDA_KIND)),build/emulated$(if $(SAN),-san-$(subst $(comma),-,$(SAN))),$(BASE))

PKGS := libprotobuf-c jansson libutf8proc libevent libevent_openssl libevent_pthreads openssl
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
# mpicc's own answer, so that any MPI with a compiler wrapper works; only cluster/ includes mpi.h.
MPI_CFLAGS := $(shell mpicc --showme:compile 2>/dev/null)
MPI_LIBS   := $(shell mpicc --showme:link 2>/dev/null)

WARN   := -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wpointer-arith -Werror
# -ffp-contract=off: whether a*b+c is fused must not depend on how the compiler unrolled a loop.
CFLAGS_ALL := -std=c11 -D_GNU_SOURCE $(OPT) -g -ffp-contract=off -fno-omit-frame-pointer -pthread $(WARN) \
    -I. -I$(BASE)/gen $(PKG_CFLAGS) -DCAROUSEL_VERSION='"$(VERSION)"' \
    $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=undefined) $(CFLAGS)

# The GPU backend: host C of kernels/cuda*.c, kernels of kernels/*.cu. A build without it has kernels/cuda_none.c.
CUDA_C   := $(sort $(filter-out kernels/cuda_none.c,$(wildcard kernels/cuda*.c)))
CUDA_CU  := $(sort $(wildcard kernels/*.cu))
EMULATOR := $(sort $(wildcard tests/emulator/*.c tests/emulator/*.cu))
ifeq ($(CUDA_KIND),real)
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
# A distribution's own package has both where the compiler looks anyway.
CUDA_INCLUDE := $(addprefix -isystem ,$(filter-out /usr/include,$(patsubst %/,%,$(dir $(wildcard $(CUDA_HOME)/include/cuda_runtime_api.h)))))
CUDA_LIBS := $(or $(firstword $(wildcard $(CUDA_HOME)/lib64/libcudart_static.a $(CUDA_HOME)/lib/libcudart_static.a)),-lcudart_static) -ldl -lrt
CUDA_CFLAGS := -DCAROUSEL_CUDA $(CUDA_INCLUDE)
# What this nvcc knows of: sm_80 for all since Ampere, Hopper's own instructions, and PTX for what is newer.
nvcc_knows = $(shell $(NVCC) --dryrun -gencode arch=$(1),code=$(2) -x cu -c /dev/null -o /dev/null >/dev/null 2>&1 && echo -gencode arch=$(1),code=$(2))
NVCC_ARCH ?= $(strip $(call nvcc_knows,compute_80,sm_80) $(or $(call nvcc_knows,compute_90a,sm_90a),$(call nvcc_knows,compute_90,sm_90)) \
    $(call nvcc_knows,compute_90,compute_90))
NVCC_ARCH := $(NVCC_ARCH)
# -fno-threadsafe-statics: nvcc's stubs of kernels have static pointers, whose guards would ask for libstdc++; nobody calls
# the stubs (CUDA_LAUNCH hands kernels to cudaLaunchKernel itself).
CU_LINE = $(NVCC) -std=c++17 -O3 -lineinfo $(NVCC_ARCH) -I. -DCAROUSEL_CUDA -Werror all-warnings -Xptxas -v \
    -Xcompiler -Wall,-Wextra,-fno-exceptions,-fno-omit-frame-pointer,-fno-threadsafe-statics $(NVCC_FLAGS)
else ifeq ($(CUDA_KIND),emulated)
CUDA_CFLAGS := -DCAROUSEL_CUDA -DCAROUSEL_CUDA_EMULATED -Itests/emulator
CXX ?= g++
# -fsanitize=alignment: an address that a 16-byte access of the chip would refuse ends the program. The rest of undefined
# would take g++ three times as long, for code that is unrolled by templates.
CU_SAN := $(if $(findstring address,$(SAN)),address$(comma))alignment
CU_LINE = $(CXX) -x c++ -std=c++17 -Itests/emulator -I. $(if $(SAN),-O1,-O2) -g -ffp-contract=off -fno-exceptions -fno-rtti -fno-omit-frame-pointer -pthread \
    -Wall -Wextra -Wno-unknown-pragmas -Wno-unused-function -Werror $(CUDA_CFLAGS) -fsanitize=$(CU_SAN) -fno-sanitize-recover=alignment
CUDA_LIBS := $(if $(SAN),,-fsanitize=alignment)
endif

LIBS_ALL := $(PKG_LIBS) $(MPI_LIBS) $(CUDA_LIBS) -lm -pthread

ROOMS := proto model kernels cluster worker coordinator train
HAS_CUDA := $(filter-out no,$(CUDA_KIND))
SRC   := $(filter-out $(if $(HAS_CUDA),kernels/cuda_none.c,$(CUDA_C)),$(sort $(foreach r,$(ROOMS),$(wildcard $(r)/*.c))))
CLI   := $(sort $(wildcard cli/*.c))
PB    := proto/carousel
CU_OBJ := $(if $(HAS_CUDA),$(CUDA_CU:%=$(BUILD)/%.o))
EMULATOR_OBJ := $(if $(filter emulated,$(CUDA_KIND)),$(patsubst %,$(BUILD)/%.o,$(EMULATOR)))
CUDA_OBJ := $(if $(HAS_CUDA),$(CUDA_C:%.c=$(BUILD)/%.o))
OBJ   := $(patsubst %.c,$(BASE)/%.o,$(filter-out $(CUDA_C),$(SRC))) $(CUDA_OBJ) $(CU_OBJ) $(EMULATOR_OBJ) $(BASE)/gen/$(PB).pb-c.o
MAIN_OBJ := $(BASE)/cli/main.o $(BASE)/cli/bench.o
# In the library too, all but main.c and bench.c, which only dispatch, so that unit tests and fuzz targets
# reach them.
CLI_OBJ := $(filter-out $(MAIN_OBJ),$(CLI:%.c=$(BASE)/%.o))
# Tests of the backend are built where it is; an emulated build runs only what the backend is part of.
UNIT_ALL := $(sort $(wildcard tests/test_*.c))
UNIT_EMULATED := $(sort $(wildcard $(foreach w,cuda emulator kernels replica worker_rows,tests/test_*$(w)*.c)))
UNIT_no  := $(filter-out tests/test_cuda% tests/test_emulator%,$(UNIT_ALL))
UNIT_real := $(filter-out tests/test_emulator%,$(UNIT_ALL))
UNIT_emulated := $(UNIT_EMULATED)
UNIT  := $(UNIT_$(CUDA_KIND))
UNIT_BIN := $(UNIT:%.c=$(BUILD)/%)
HEADERS := $(sort $(foreach r,$(ROOMS) cli,$(wildcard $(r)/*.h)))
CUH   := $(sort $(wildcard kernels/*.cuh))
FUZZ  := $(sort $(wildcard tests/fuzz_*.c))
FUZZ_BUILD := build/fuzz
FUZZ_BIN := $(FUZZ:tests/%.c=$(FUZZ_BUILD)/tests/%)

.DEFAULT_GOAL := all
.PHONY: all help cuda_report demo test unit e2e bench fuzz pure headers includes install clean setup format FORCE
.DELETE_ON_ERROR:
.SECONDARY:

all: setup ## build the program: build/carousel
	@$(MAKE) --no-print-directory build/carousel

help: ## this list
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  variables: SAN=address,undefined|thread  PREFIX=$(PREFIX)  FUZZ_SECONDS=$(FUZZ_SECONDS)  OPT=$(OPT)  CUDA=auto|no|emulated"

setup: ## install what is missing (Debian packages); does nothing when all is there
	@scripts/setup.sh

# A stamp per variant that changes only when the compile line does.
FLAGS_LINE := $(CC) $(CFLAGS_ALL) $(MPI_CFLAGS) $(PKG_LIBS) $(MPI_LIBS)
CUDA_LINE := $(CUDA_KIND) $(CUDA_CFLAGS) $(CUDA_LIBS) $(CU_LINE)
stamp = mkdir -p $(@D) && { printf '%s\n' '$(subst ','\'',$(1))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(1))' > $@; }
$(BASE)/flags: FORCE
	@$(call stamp,$(FLAGS_LINE))
$(BUILD)/flags_cuda: FORCE
	@$(call stamp,$(CUDA_LINE))

# Instruction sets by file name, so that the flags stay next to the code that needs them.
$(BASE)/%_avx2.o: ISA := -mavx2 -mfma -mf16c
AVX512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mprefer-vector-width=512
$(BASE)/%_avx512.o: ISA := $(AVX512)
$(BASE)/%_amx.o: ISA := $(AVX512) -mamx-tile -mamx-bf16

# Fuzz targets do not reach the kernels, and clang needs ten minutes for their unrolled loops with -fsanitize=undefined.
$(FUZZ_BUILD)/kernels/%.o: UNINSTRUMENTED := -fno-sanitize=all

$(BASE)/gen/$(PB).pb-c.c $(BASE)/gen/$(PB).pb-c.h: $(PB).proto
	@mkdir -p $(BASE)/gen
	@protoc-c --c_out=$(BASE)/gen $<
$(BASE)/gen/%.pb-c.o: $(BASE)/gen/%.pb-c.c $(BASE)/flags
	@echo "  CC   $<"
	@$(CC) $(filter-out -Wshadow -Wmissing-prototypes -Werror,$(CFLAGS_ALL)) -MMD -MP -c $< -o $@

$(BASE)/%.o: %.c $(BASE)/flags | $(BASE)/gen/$(PB).pb-c.h
	@mkdir -p $(@D)
	@echo "  CC   $<"
	@$(CC) $(CFLAGS_ALL) $(ISA) $(UNINSTRUMENTED) $(if $(filter cluster/%,$<),$(MPI_CFLAGS)) -MMD -MP -c $< -o $@

# Only the backend's own files and the tests see CUDA: a change of CUDA= rebuilds no others.
$(CUDA_OBJ): $(BUILD)/%.o: %.c $(BASE)/flags $(BUILD)/flags_cuda | $(BASE)/gen/$(PB).pb-c.h
	@mkdir -p $(@D)
	@echo "  CC   $<"
	@$(CC) $(CFLAGS_ALL) $(CUDA_CFLAGS) -MMD -MP -c $< -o $@
# The emulator's C objects are named as its .cu ones: x.c.o, x.cu.o.
$(BUILD)/tests/emulator/%.c.o: tests/emulator/%.c $(BASE)/flags $(BUILD)/flags_cuda
	@mkdir -p $(@D)
	@echo "  CC   $<"
	@$(CC) $(CFLAGS_ALL) -O2 $(CUDA_CFLAGS) -MMD -MP -c $< -o $@

# nvcc's report of registers, shared memory and spills stays beside the object.
$(BUILD)/%.cu.o: %.cu $(BUILD)/flags_cuda
	@mkdir -p $(@D)
	@echo "  CU   $<"
	@$(CU_LINE) -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@ 2>$@.log || { cat $@.log; exit 1; }

$(BUILD)/cuda_kernels.txt: $(CU_OBJ)
	@cat $(CU_OBJ:=.log) </dev/null > $@

cuda_report: $(BUILD)/cuda_kernels.txt ## registers, shared memory, stack and spills of every kernel; fails on spills
	@scripts/cuda_report.sh $<

# Pages are built into the program by .incbin, which the compiler's dependencies do not name.
$(BASE)/coordinator/http_live.o: coordinator/live_page.html
$(BASE)/cli/trace_page.o: cli/trace_page.html

$(BUILD)/libcarousel.a: $(OBJ) $(CLI_OBJ) $(BUILD)/flags_cuda
	@echo "  AR   $@"
	@rm -f $@ && ar rcs $@ $(filter %.o,$^)

$(BUILD)/carousel: $(MAIN_OBJ) $(BUILD)/libcarousel.a
	@echo "  LINK $@"
	@$(CC) $(CFLAGS_ALL) -o $@ $(MAIN_OBJ) $(BUILD)/libcarousel.a $(LIBS_ALL)

build/carousel: $(BUILD)/carousel
	@ln -sf $(<:build/%=%) $@

$(BUILD)/tests/%: tests/%.c tests/unit.h $(BUILD)/libcarousel.a
	@mkdir -p $(@D)
	@echo "  TEST $<"
	@$(CC) $(CFLAGS_ALL) $(CUDA_CFLAGS) -MMD -MP -MF $@.d -o $@ $< $(BUILD)/libcarousel.a -lcmocka $(LIBS_ALL)

unit: $(UNIT_BIN) ## unit tests only (cmocka); SAN= picks a sanitizer build
	@scripts/run_units.sh $(UNIT_BIN)

test: setup ## everything: units, sanitizers, purity, end to end over MPI, a few seconds of fuzzing
	@scripts/setup.sh tests || echo "test: goes on without these packages; what needs them says so"
	@scripts/test.sh

e2e: build/carousel ## the end-to-end tests only; all are tests/e2e_*.py and run alone too
	@scripts/test.sh e2e_

demo: setup ## the demo: a trained looped model through a coordinator and four workers over MPI
	@$(MAKE) --no-print-directory build/carousel
	@scripts/demo.sh

bench: setup ## kernel, network and engine benchmarks on this machine
	@$(MAKE) --no-print-directory build/carousel
	@scripts/bench.sh

fuzz: setup ## every libFuzzer target for FUZZ_SECONDS (default 10) each
	@$(MAKE) --no-print-directory fuzz-bins
	@scripts/fuzz.sh $(FUZZ_SECONDS) $(FUZZ_BUILD)

fuzz-bins:
	@$(MAKE) --no-print-directory CC=clang CUDA=no BASE=$(FUZZ_BUILD) BUILD=$(FUZZ_BUILD) SAN= OPT=-O1 \
	    CFLAGS='-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined -Wno-unknown-warning-option' $(FUZZ_BIN)
$(FUZZ_BUILD)/tests/fuzz_%: tests/fuzz_%.c $(FUZZ_BUILD)/libcarousel.a
	@mkdir -p $(@D)
	@echo "  FUZZ $<"
	@$(CC) $(CFLAGS_ALL) -Wno-missing-prototypes -fsanitize=fuzzer -o $@ $< $(FUZZ_BUILD)/libcarousel.a $(LIBS_ALL)

pure: $(BUILD)/libcarousel.a ## fail if a pure object calls anything outside a short list
	@scripts/check_pure.sh $(BASE)

headers: $(BASE)/gen/$(PB).pb-c.h ## every header compiles alone
	@for h in $(HEADERS); do \
	    case $$h in kernels/cuda*) cuda='$(or $(CUDA_CFLAGS),-Itests/emulator)' ;; *) cuda= ;; esac; \
	    $(CC) $(CFLAGS_ALL) $(MPI_CFLAGS) $$cuda -fsyntax-only -x c $$h || exit 1; done
	@for h in $(CUH); do \
	    $(or $(CXX),g++) -x c++ -std=c++17 -Wall -Wextra -Werror -Wno-unused-function -Wno-unknown-pragmas -I. -Itests/emulator \
	        -DCAROUSEL_CUDA_EMULATED -fsyntax-only $$h || exit 1; done
	@echo "headers: $(words $(HEADERS) $(CUH)) compile alone"

includes: ## includes go one way, mpi.h lives in one file
	@scripts/check_includes.sh

install: all ## install the program, the demo model and the cost files under PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/carousel/demo $(DESTDIR)$(PREFIX)/share/carousel/costs
	install -m 755 build/carousel $(DESTDIR)$(PREFIX)/bin/carousel
	install -m 644 model/demo/* $(DESTDIR)$(PREFIX)/share/carousel/demo
	install -m 644 cluster/costs/*.json $(DESTDIR)$(PREFIX)/share/carousel/costs

format: ## clang-format over our C
	@clang-format -i $(SRC) $(CUDA_C) $(CUDA_CU) $(CUH) $(CLI) $(HEADERS) $(UNIT_ALL) $(FUZZ) $(EMULATOR) $(wildcard tests/emulator/*.h)

clean: ## remove build/
	@rm -rf build

-include $(OBJ:.o=.d) $(MAIN_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(UNIT_BIN:%=%.d)
