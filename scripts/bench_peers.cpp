// Times OpenBLAS sgemm and oneDNN matmul on the shapes of `carousel bench kernels`, one JSON array
// out.
//
// y[n, out] = x[n, in] * w[out, in]^T. OpenBLAS gets fp32 weights as they lie; oneDNN may choose
// its own weight layout, prepared outside the timing. Weights cycle through an area larger than the
// caches.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <cblas.h>
#include <dnnl.hpp>

namespace
{

struct shape {
    const char *name;
    int in, out; // outputs of all jobs of the shape in one product
};
const shape shapes[] = {{"qkv", 2048, 3 * 2048},
                        {"o", 2048, 2048},
                        {"gate_up", 2048, 2 * 5632},
                        {"down", 5632, 2048},
                        {"head", 2048, 49152}};
const size_t area_bytes = size_t(1280) << 20;

double now_s()
{
    using namespace std::chrono;
    return duration<double>(steady_clock::now().time_since_epoch()).count();
}

struct times {
    double median, best;
};

// run(i) does the product with the i-th place of the area.
template <typename F> times measure(F run)
{
    double start = now_s();
    run(0);
    int repeats = std::clamp(int(0.3 / std::max(now_s() - start, 1e-9)), 3, 64);
    std::vector<double> took;
    for (int i = 1; i <= repeats; i++) {
        start = now_s();
        run(i);
        took.push_back(now_s() - start);
    }
    std::sort(took.begin(), took.end());
    return {took[took.size() / 2], took[0]};
}

bool has_printed = false;

void print(const char *library, int threads, const shape &s, int rows, const times &t)
{
    double flops = 2.0 * rows * s.in * s.out;
    std::printf("%s\n  {\"library\": \"%s\", \"threads\": %d, \"shape\": \"%s\", \"rows\": %d, "
                "\"seconds\": %.9f, \"best_seconds\": %.9f, \"gflops\": %.2f}",
                has_printed ? "," : "", library, threads, s.name, rows, t.median, t.best,
                flops / t.median * 1e-9);
    has_printed = true;
}

void bench_openblas(const shape &s, int rows, int threads, const uint8_t *area, const float *x,
                    float *y)
{
    const size_t one = size_t(s.in) * s.out * 4, places = area_bytes / one;
    times t = measure([&](int i) {
        const float *w = reinterpret_cast<const float *>(area + size_t(i) % places * one);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, s.out, s.in, 1.0f, x, s.in, w,
                    s.in, 0.0f, y, s.out);
    });
    print("openblas_f32", threads, s, rows, t);
}

void bench_onednn(const shape &s, int rows, int threads, const char *name,
                  dnnl::memory::data_type src, dnnl::memory::data_type weights, uint8_t *area,
                  void *x, float *y)
{
    using namespace dnnl;
    using tag = memory::format_tag;
    engine cpu(engine::kind::cpu, 0);
    stream queue(cpu);
    memory::desc x_desc({rows, s.in}, src, tag::ab), w_desc({s.in, s.out}, weights, tag::any);
    memory::desc y_desc({rows, s.out}, memory::data_type::f32, tag::ab);
    matmul::primitive_desc pd;
    try {
#if DNNL_VERSION_MAJOR >= 3
        pd = matmul::primitive_desc(cpu, x_desc, w_desc, y_desc);
#else
        pd = matmul::primitive_desc(matmul::desc(x_desc, w_desc, y_desc), cpu);
#endif
    } catch (const dnnl::error &) {
        return; // this version has no such combination of types
    }
    matmul product(pd);
    memory::desc packed = pd.weights_desc();
    const size_t one = (packed.get_size() + 63) / 64 * 64, places = area_bytes / one;
    memory x_memory(x_desc, cpu, x), y_memory(y_desc, cpu, y), w_memory(packed, cpu, area);
    times t = measure([&](int i) {
        w_memory.set_data_handle(area + size_t(i) % places * one);
        product.execute(
            queue,
            {{DNNL_ARG_SRC, x_memory}, {DNNL_ARG_WEIGHTS, w_memory}, {DNNL_ARG_DST, y_memory}});
        queue.wait();
    });
    print(name, threads, s, rows, t);
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 3) {
        std::fprintf(stderr, "usage: bench_peers THREADS ROWS,ROWS,...\n");
        return 2;
    }
    const int threads = std::atoi(argv[1]);
    std::vector<int> rows;
    for (char *p = std::strtok(argv[2], ","); p != nullptr; p = std::strtok(nullptr, ","))
        rows.push_back(std::atoi(p));
    const int most = *std::max_element(rows.begin(), rows.end());
    auto *area = static_cast<uint8_t *>(std::aligned_alloc(4096, area_bytes));
    auto *x = static_cast<float *>(std::aligned_alloc(64, size_t(most) * 5632 * 4));
    auto *y = static_cast<float *>(std::aligned_alloc(64, size_t(most) * 49152 * 4));
    if (area == nullptr || x == nullptr || y == nullptr) {
        std::fprintf(stderr, "bench_peers: no memory for %zu MiB of weights\n", area_bytes >> 20);
        return 1;
    }
    // The same bits serve as fp32 and as bf16: normal numbers of both signs around 1/32.
    auto *halves = reinterpret_cast<uint16_t *>(area);
    uint64_t state = 1;
    for (size_t i = 0; i < (1 << 19); i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        halves[i] = uint16_t(0x3c80u | (state >> 40 & 0x807fu));
    }
    for (size_t at = 1 << 20; at < area_bytes; at += 1 << 20)
        std::memcpy(area + at, area, 1 << 20);
    std::memcpy(x, area, size_t(most) * 5632 * 4);
    openblas_set_num_threads(threads);
    using type = dnnl::memory::data_type;
    std::printf("[");
    for (const shape &s : shapes)
        for (int n : rows) {
            bench_openblas(s, n, threads, area, x, y);
            bench_onednn(s, n, threads, "onednn_f32_bf16w", type::f32, type::bf16, area, x, y);
            bench_onednn(s, n, threads, "onednn_f32", type::f32, type::f32, area, x, y);
            bench_onednn(s, n, threads, "onednn_bf16", type::bf16, type::bf16, area, x, y);
        }
    std::printf("\n]\n");
    std::free(area);
    std::free(x);
    std::free(y);
    return 0;
}
