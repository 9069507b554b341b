// The forward and backward pass of one batch, and Muon's orthogonalization, for a processor with AMX (bfloat16 tiles).
//
// PyTorch's own kernels leave most of such a core idle on models this small (they pass every tensor through memory several
// times); this is twice as fast. Numbers: weights, gradients, norms, softmax sums and the residual stream are
// float32, operands of the matrix products bfloat16. All sizes are multiples of 32. One thread.
//
// Built by step.py: g++ -O3 -march=sapphirerapids -ffast-math -shared -fPIC
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

typedef uint16_t bf;
typedef __m512 F;
static const int D = WIDTH, H = HEADS, HD = D / H, CTX = CONTEXT, L = LAYERS, INNER = 4 * D, ROT = HD / 4;

static inline F load(const float* p) { return _mm512_loadu_ps(p); }
static inline F load(const bf* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16)); }
static inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
static inline void store(bf* p, F v) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v)); }
static inline F all(float v) { return _mm512_set1_ps(v); }

static inline F exp16(F x) {
    x = _mm512_max_ps(_mm512_min_ps(x, all(88.f)), all(-87.f));
    F n = _mm512_roundscale_ps(x * all(1.44269504f), 0);
    F r = _mm512_fnmadd_ps(n, all(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, all(-2.12194440e-4f), r);
    F p = all(1.9875691500e-4f);
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = _mm512_fmadd_ps(p, r, all(c));
    p = _mm512_fmadd_ps(p, r * r, r + all(1.f));
    return _mm512_scalef_ps(p, n);
}

// GELU of x in `y`, its derivative in `d`.
template <bool TANH> static inline void gelu(F x, F& y, F& d) {
    if (TANH) {
        F u = all(0.7978845608f) * (x + all(0.044715f) * x * x * x);
        F t = all(1.f) - all(2.f) / (exp16(u + u) + all(1.f));
        y = all(0.5f) * x * (all(1.f) + t);
        d = all(0.5f) * (all(1.f) + t) + all(0.5f) * x * (all(1.f) - t * t) * all(0.7978845608f) * (all(1.f) + all(3 * 0.044715f) * x * x);
    } else {  // erf by Abramowitz and Stegun 7.1.26
        F z = _mm512_abs_ps(x) * all(0.70710678f), e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), z * z)), t = all(1.f) / (all(1.f) + all(0.3275911f) * z);
        F p = all(1.061405429f);
        for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = _mm512_fmadd_ps(p, t, all(c));
        F upper = all(0.5f) * p * t * e;  // 1 - Phi(|x|)
        F phi = _mm512_mask_sub_ps(upper, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), all(1.f), upper);
        y = x * phi;
        d = phi + x * e * all(0.3989422804f);
    }
}

// ------------------------------------------------------------------------------------------------ matrix product

template <class T> struct Buffer {
    T* p = nullptr;
    size_t n = 0;
    T* get(size_t want) {
        if (want > n) { free(p); p = (T*)aligned_alloc(64, (want * sizeof(T) + 63) / 64 * 64); n = want; }
        return p;
    }
};

static void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) { t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]); t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]); }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]); r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]); r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88); t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88); t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 8; i++) { r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88); r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd); }
}

static inline __m512i pair(const bf* a, const bf* b) {  // columns of two rows, interleaved
    return _mm512_or_si512(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)a)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)b)), 16));
}

// Tiles of 16 x 16 pairs, [n / 16][k / 32][512]. `rows`: source is [k][n]; `columns`: source is [n][k].
static void right_of_rows(bf* to, const bf* from, int k, int n, long ld) {
    for (int j = 0; j < n / 16; j++)
        for (int i = 0; i < k / 32; i++, to += 512)
            for (int r = 0; r < 16; r++) { const bf* s = from + (i * 32 + 2 * r) * ld + j * 16; _mm512_store_si512(to + 32 * r, pair(s, s + ld)); }
}
static void right_of_columns(bf* to, const bf* from, int k, int n, long ld) {
    __m512i t[16];
    for (int j = 0; j < n / 16; j++)
        for (int i = 0; i < k / 32; i++, to += 512) {
            for (int r = 0; r < 16; r++) t[r] = _mm512_loadu_si512(from + (j * 16 + r) * ld + i * 32);
            transpose(t);
            for (int r = 0; r < 16; r++) _mm512_store_si512(to + 32 * r, t[r]);
        }
}
// The transpose of [k][m] as a left operand: tiles [m / 16][k / 32][512]. With `causal`, tiles that are zero are left out.
static void left_of_columns(bf* to, const bf* from, int k, int m, long ld, bool causal = false) {
    __m512i t[16];
    for (int j = 0; j < m / 16; j++)
        for (int i = 0; i < k / 32; i++, to += 512) {
            if (causal && j * 16 >= i * 32 + 32) continue;
            for (int r = 0; r < 16; r++) { const bf* s = from + (i * 32 + 2 * r) * ld + j * 16; t[r] = pair(s, s + ld); }
            transpose(t);
            for (int r = 0; r < 16; r++) _mm512_store_si512(to + 32 * r, t[r]);
        }
}

static void configure() {
    static bool done = false;
    if (!done) { syscall(SYS_arch_prctl, 0x1023, 18); done = true; }
    struct { uint8_t palette, start, zero[14]; uint16_t bytes[16]; uint8_t rows[16]; } c;
    memset(&c, 0, sizeof c);
    c.palette = 1;
    for (int i = 0; i < 8; i++) { c.bytes[i] = 64; c.rows[i] = 16; }
    _tile_loadconfig(&c);
}

struct Left { const bf* p; long row16, step, stride; };  // elements to the next 16 rows, to the next 32 columns; bytes a row
static inline Left plain(const bf* p, long ld) { return {p, 16 * ld, 32, ld * 2}; }
static inline Left packed(const bf* p, int k) { return {p, (long)k / 32 * 512, 512, 64}; }

// 32 x 32 of the product: rows from `m` on, columns from `n` on, k in tiles [k0, k1) of `kt`.
static inline void block(const Left& a, const bf* b, int kt, int m, int n, int k0, int k1, float* out) {
    const bf *a0 = a.p + m / 16 * a.row16 + k0 * a.step, *a1 = a0 + a.row16;
    const bf *b0 = b + ((long)n / 16 * kt + k0) * 512, *b1 = b0 + kt * 512L;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int k = k0; k < k1; k++, a0 += a.step, a1 += a.step, b0 += 512, b1 += 512) {
        _tile_loadd(4, a0, a.stride); _tile_loadd(6, b0, 64); _tile_loadd(5, a1, a.stride); _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 128); _tile_stored(1, out + 16, 128); _tile_stored(2, out + 512, 128); _tile_stored(3, out + 528, 128);
}

// The product [m][n], handed to `done(row, column, value of 16 columns)`.
template <class Done> static void product(const Left& a, const bf* b, int m, int n, int k, Done done) {
    alignas(64) float out[1024];
    for (int big = 0; big < m; big += 256)
        for (int j = 0; j < n; j += 32)
            for (int i = big; i < big + 256 && i < m; i += 32) {
                block(a, b, k / 32, i, j, 0, k / 32, out);
                for (int r = 0; r < 32; r++) { done(i + r, j, load(out + 32 * r)); done(i + r, j + 16, load(out + 32 * r + 16)); }
            }
}

// ------------------------------------------------------------------------------------------------ the model

struct Weight {  // [n][k], packed for x W^T and for dy W
    Buffer<bf> plain_, forward_, backward_;
    const bf *forward, *backward;
    void set(const float* w, int n, int k) {
        bf* p = plain_.get((size_t)n * k);
        for (size_t i = 0; i < (size_t)n * k; i += 16) store(p + i, load(w + i));
        right_of_columns(forward_.get((size_t)n * k), p, k, n, k);
        right_of_rows(backward_.get((size_t)n * k), p, n, k, k);
        forward = forward_.p; backward = backward_.p;
    }
};

struct Norm {
    Buffer<float> mean, rstd;
    void forward(const float* x, const float* g, const float* b, bf* y, int t) {
        float *mu = mean.get(t), *rs = rstd.get(t);
        for (int i = 0; i < t; i++, x += D, y += D) {
            F s = all(0), q = all(0);
            for (int j = 0; j < D; j += 16) s += load(x + j);
            float m = _mm512_reduce_add_ps(s) / D;
            for (int j = 0; j < D; j += 16) { F v = load(x + j) - all(m); q += v * v; }
            float r = 1.f / sqrtf(_mm512_reduce_add_ps(q) / D + 1e-5f);
            for (int j = 0; j < D; j += 16) store(y + j, (load(x + j) - all(m)) * all(r) * load(g + j) + load(b + j));
            mu[i] = m; rs[i] = r;
        }
    }
    // Adds to the gradients of x, gain and bias.
    void backward(const float* x, const float* g, const bf* dy, float* dx, float* dg, float* db, int t) {
        for (int i = 0; i < t; i++, x += D, dy += D, dx += D) {
            F s = all(0), q = all(0), m = all(mean.p[i]), r = all(rstd.p[i]);
            for (int j = 0; j < D; j += 16) {
                F n = (load(x + j) - m) * r, d = load(dy + j), e = d * load(g + j);
                s += e; q += e * n;
                store(dg + j, load(dg + j) + d * n); store(db + j, load(db + j) + d);
            }
            F ms = all(_mm512_reduce_add_ps(s) / D), mq = all(_mm512_reduce_add_ps(q) / D);
            for (int j = 0; j < D; j += 16) {
                F n = (load(x + j) - m) * r, e = load(dy + j) * load(g + j);
                store(dx + j, load(dx + j) + r * (e - ms - n * mq));
            }
        }
    }
};

template <class T> static void column_sums(const T* x, int t, int n, float* to) {
    for (int i = 0; i < t; i++, x += n) for (int j = 0; j < n; j += 16) store(to + j, load(to + j) + load(x + j));
}

// dW [n][k] += dy^T x
static void weight_gradient(const bf* dy, int n, const bf* x, int k, int t, float* dw) {
    static Buffer<bf> left, right;
    left_of_columns(left.get((size_t)n * t), dy, t, n, n);
    right_of_rows(right.get((size_t)k * t), x, t, k, k);
    product(packed(left.p, t), right.p, n, k, t, [&](int i, int j, F v) { float* p = dw + (long)i * k + j; store(p, load(p) + v); });
}

struct LayerState {
    Weight qkv, out, up, down;
    Norm ln1, ln2;
    Buffer<bf> h1, h2, q, k, v, p, att, g, slope;
};
static LayerState layers[L];
static Weight embed;
static Buffer<float> xs[2 * L + 1], dx_, logits_;
static Buffer<bf> last, dlogits, dy_, dwide, dhid, dqkv, datt, ds, pk, pv, pl, pr;
static Norm ln_last;

// Turns the rotary columns of [t][HD] rows by the angle of their position (sign -1: back).
static void rotate(bf* x, long ld, int t, float sign) {
    static std::vector<float> cs;
    if (cs.empty()) for (int i = 0; i < CTX; i++) for (int j = 0; j < ROT / 2; j++) {
        double a = i * pow(10000., -2. * j / ROT);
        cs.push_back((float)cos(a)); cs.push_back((float)sin(a));
    }
    auto get = [](bf v) { uint32_t u = (uint32_t)v << 16; float f; memcpy(&f, &u, 4); return f; };
    auto put = [](float f) { uint32_t u; memcpy(&u, &f, 4); return (bf)((u + 0x7fff + (u >> 16 & 1)) >> 16); };
    for (int i = 0; i < t; i++, x += ld) for (int j = 0; j < ROT / 2; j++) {
        float c = cs[i * ROT + 2 * j], s = sign * cs[i * ROT + 2 * j + 1], a = get(x[j]), b = get(x[j + ROT / 2]);
        x[j] = put(a * c - b * s); x[j + ROT / 2] = put(b * c + a * s);
    }
}

static void attention(LayerState& s, int seqs) {
    alignas(64) static float rows[32 * CTX], out[1024];
    bf* p = s.p.get((size_t)seqs * H * CTX * CTX);
    for (int n = 0; n < seqs * H; n++, p += CTX * CTX) {
        const bf *q = s.q.p + (long)n * CTX * HD, *k = s.k.p + (long)n * CTX * HD, *v = s.v.p + (long)n * CTX * HD;
        right_of_columns(pk.get(CTX * HD), k, HD, CTX, HD);
        right_of_rows(pv.get(CTX * HD), v, CTX, HD, HD);
        const float scale = 1 / sqrtf(HD);
        for (int i = 0; i < CTX; i += 32) {
            for (int j = 0; j <= i; j += 32) {
                block(plain(q, HD), pk.p, HD / 32, i, j, 0, HD / 32, out);
                for (int r = 0; r < 32; r++) for (int c = 0; c < 32; c += 16) store(rows + r * CTX + j + c, load(out + 32 * r + c) * all(scale));
            }
            for (int r = 0; r < 32; r++) {
                float* x = rows + r * CTX;
                for (int c = r + 1; c < 32; c++) x[i + c] = -1e30f;
                F m = all(-1e30f), sum = all(0);
                for (int c = 0; c < i + 32; c += 16) m = _mm512_max_ps(m, load(x + c));
                m = all(_mm512_reduce_max_ps(m));
                for (int c = 0; c < i + 32; c += 16) { F e = exp16(load(x + c) - m); e = _mm512_mask_mov_ps(e, _mm512_cmp_ps_mask(load(x + c), all(-1e29f), _CMP_LT_OQ), all(0)); store(x + c, e); sum += e; }
                F inv = all(1 / _mm512_reduce_add_ps(sum));
                for (int c = 0; c < i + 32; c += 16) store(p + (long)(i + r) * CTX + c, load(x + c) * inv);
            }
            for (int j = 0; j < HD; j += 32) {
                block(plain(p, CTX), pv.p, CTX / 32, i, j, 0, i / 32 + 1, out);
                bf* to = s.att.p + ((long)(n / H) * CTX + i) * D + n % H * HD + j;
                for (int r = 0; r < 32; r++) for (int c = 0; c < 32; c += 16) store(to + (long)r * D + c, load(out + 32 * r + c));
            }
        }
    }
}

// From the gradient of the joined heads' output, that of queries, keys and values, [t][3 D].
static void attention_backward(LayerState& s, const bf* datt, bf* dqkv, int seqs, bool rotary) {
    alignas(64) static float rows[32 * CTX], out[1024];
    bf* d = ds.get(CTX * CTX);
    for (int n = 0; n < seqs * H; n++) {
        const bf *q = s.q.p + (long)n * CTX * HD, *k = s.k.p + (long)n * CTX * HD, *v = s.v.p + (long)n * CTX * HD, *p = s.p.p + (long)n * CTX * CTX;
        const bf* dout = datt + (long)(n / H) * CTX * D + n % H * HD;
        bf* to = dqkv + (long)(n / H) * CTX * 3 * D + n % H * HD;
        auto put = [&](int part, int i, int j) {
            for (int r = 0; r < 32; r++) for (int c = 0; c < 32; c += 16) store(to + part * D + (long)(i + r) * 3 * D + j + c, load(out + 32 * r + c));
        };
        const float scale = 1 / sqrtf(HD);
        right_of_columns(pv.get(CTX * HD), v, HD, CTX, HD);
        right_of_rows(pk.get(CTX * HD), k, CTX, HD, HD);
        for (int i = 0; i < CTX; i += 32) {
            for (int j = 0; j <= i; j += 32) {
                block(plain(dout, D), pv.p, HD / 32, i, j, 0, HD / 32, out);
                for (int r = 0; r < 32; r++) for (int c = 0; c < 32; c += 16) store(rows + r * CTX + j + c, load(out + 32 * r + c));
            }
            for (int r = 0; r < 32; r++) {
                const bf* pr_ = p + (long)(i + r) * CTX;
                F sum = all(0);
                for (int c = 0; c < i + 32; c += 16) sum += load(rows + r * CTX + c) * load(pr_ + c);
                F m = all(_mm512_reduce_add_ps(sum));
                for (int c = 0; c < i + 32; c += 16) store(d + (long)(i + r) * CTX + c, load(pr_ + c) * (load(rows + r * CTX + c) - m) * all(scale));
            }
            for (int j = 0; j < HD; j += 32) { block(plain(d, CTX), pk.p, CTX / 32, i, j, 0, i / 32 + 1, out); put(0, i, j); }
        }
        right_of_rows(pr.get(CTX * HD), q, CTX, HD, HD);
        left_of_columns(pl.get(CTX * CTX), d, CTX, CTX, CTX, true);
        for (int i = 0; i < CTX; i += 32) for (int j = 0; j < HD; j += 32) { block(packed(pl.p, CTX), pr.p, CTX / 32, i, j, i / 32, CTX / 32, out); put(1, i, j); }
        right_of_rows(pr.p, dout, CTX, HD, D);
        left_of_columns(pl.p, p, CTX, CTX, CTX, true);
        for (int i = 0; i < CTX; i += 32) for (int j = 0; j < HD; j += 32) { block(packed(pl.p, CTX), pr.p, CTX / 32, i, j, i / 32, CTX / 32, out); put(2, i, j); }
        if (rotary) { rotate(to, 3 * D, CTX, -1); rotate(to + D, 3 * D, CTX, -1); }
    }
}

enum { LN1G, LN1B, LN2G, LN2B, QKVW, QKVB, OUTW, OUTB, UPW, UPB, DOWNW, DOWNB, PER };

template <bool NEOX> static double micro(float** w, float** dw, int vocab, const int64_t* ids, const int64_t* targets, int seqs, float weight) {
    const int t = seqs * CTX;
    float **lw = w + 4, **ldw = dw + 4;  // embedding, positions (or null), last gain, last bias, then the layers
    float* x = xs[0].get((size_t)t * D);
    for (int i = 0; i < t; i++) for (int j = 0; j < D; j += 16) {
        F v = load(w[0] + ids[i] * D + j);
        store(x + (long)i * D + j, NEOX ? v : v + load(w[1] + (long)(i % CTX) * D + j));
    }
    for (int l = 0; l < L; l++, lw += PER) {
        LayerState& s = layers[l];
        const float* x0 = xs[2 * l].p;
        float *x1 = xs[2 * l + 1].get((size_t)t * D), *x2 = xs[2 * l + 2].get((size_t)t * D);
        s.ln1.forward(x0, lw[LN1G], lw[LN1B], s.h1.get((size_t)t * D), t);
        bf* parts[3] = {s.q.get((size_t)t * D), s.k.get((size_t)t * D), s.v.get((size_t)t * D)};
        product(plain(s.h1.p, D), s.qkv.forward, t, 3 * D, D, [&](int i, int j, F v) {
            int c = j % D;
            store(parts[j / D] + (((long)(i / CTX) * H + c / HD) * CTX + i % CTX) * HD + c % HD, v + load(lw[QKVB] + j));
        });
        if (NEOX) for (int n = 0; n < seqs * H; n++) { rotate(s.q.p + (long)n * CTX * HD, HD, CTX, 1); rotate(s.k.p + (long)n * CTX * HD, HD, CTX, 1); }
        s.att.get((size_t)t * D);
        attention(s, seqs);
        product(plain(s.att.p, D), s.out.forward, t, D, D, [&](int i, int j, F v) { store(x1 + (long)i * D + j, load(x0 + (long)i * D + j) + v + load(lw[OUTB] + j)); });
        s.ln2.forward(NEOX ? x0 : x1, lw[LN2G], lw[LN2B], s.h2.get((size_t)t * D), t);
        bf *slope = s.slope.get((size_t)t * INNER), *g = s.g.get((size_t)t * INNER);
        product(plain(s.h2.p, D), s.up.forward, t, INNER, D, [&](int i, int j, F v) {
            F y, d;
            v += load(lw[UPB] + j);
            gelu<!NEOX>(v, y, d);
            store(slope + (long)i * INNER + j, d); store(g + (long)i * INNER + j, y);
        });
        product(plain(g, INNER), s.down.forward, t, D, INNER, [&](int i, int j, F v) { store(x2 + (long)i * D + j, load(x1 + (long)i * D + j) + v + load(lw[DOWNB] + j)); });
    }
    bf* h = last.get((size_t)t * D);
    ln_last.forward(xs[2 * L].p, w[2], w[3], h, t);
    bf* dl = dlogits.get((size_t)t * vocab);
    double loss = 0;
    const int chunk = 128;
    float* logits = logits_.get((size_t)chunk * vocab);
    for (int at = 0; at < t; at += chunk) {
        product(plain(h + (long)at * D, D), embed.forward, chunk, vocab, D, [&](int i, int j, F v) { store(logits + (long)i * vocab + j, v); });
        for (int i = 0; i < chunk; i++) {
            float* x = logits + (long)i * vocab;
            F m = all(-1e30f), sum = all(0);
            for (int j = 0; j < vocab; j += 16) m = _mm512_max_ps(m, load(x + j));
            m = all(_mm512_reduce_max_ps(m));
            int64_t target = targets[at + i];
            float wanted = target < 0 ? 0 : x[target];
            for (int j = 0; j < vocab; j += 16) { F e = exp16(load(x + j) - m); store(x + j, e); sum += e; }
            float total = _mm512_reduce_add_ps(sum);
            if (target >= 0) loss += logf(total) + _mm512_cvtss_f32(m) - wanted;
            if (!dw) continue;
            if (target >= 0) x[target] -= total;
            F scale = all(target >= 0 ? weight / total : 0);
            for (int j = 0; j < vocab; j += 16) store(dl + (long)(at + i) * vocab + j, load(x + j) * scale);
        }
    }
    if (!dw) return loss;

    float* dx = dx_.get((size_t)t * D);
    memset(dx, 0, (size_t)t * D * 4);
    bf *dy = dy_.get((size_t)t * D), *wide = dwide.get((size_t)t * INNER), *dh = dhid.get((size_t)t * D);
    auto narrow = [&] { for (long i = 0; i < (long)t * D; i += 16) store(dy + i, load(dx + i)); };
    auto to_hidden = [&](int i, int j, F v) { store(dh + (long)i * D + j, v); };
    product(plain(dl, vocab), embed.backward, t, D, vocab, to_hidden);
    weight_gradient(dl, vocab, h, D, t, dw[0]);
    ln_last.backward(xs[2 * L].p, w[2], dh, dx, dw[2], dw[3], t);
    for (int l = L - 1; l >= 0; l--) {
        lw = w + 4 + l * PER; ldw = dw + 4 + l * PER;
        LayerState& s = layers[l];
        const float *x0 = xs[2 * l].p, *x1 = xs[2 * l + 1].p;
        narrow();
        column_sums(dx, t, D, ldw[DOWNB]);
        if (NEOX) column_sums(dx, t, D, ldw[OUTB]);
        weight_gradient(dy, D, s.g.p, INNER, t, ldw[DOWNW]);
        product(plain(dy, D), s.down.backward, t, INNER, D, [&](int i, int j, F v) {
            store(wide + (long)i * INNER + j, v * load(s.slope.p + (long)i * INNER + j));
        });
        column_sums(wide, t, INNER, ldw[UPB]);
        weight_gradient(wide, INNER, s.h2.p, D, t, ldw[UPW]);
        product(plain(wide, INNER), s.up.backward, t, D, INNER, to_hidden);
        s.ln2.backward(NEOX ? x0 : x1, lw[LN2G], dh, dx, ldw[LN2G], ldw[LN2B], t);
        if (!NEOX) { narrow(); column_sums(dx, t, D, ldw[OUTB]); }
        weight_gradient(dy, D, s.att.p, D, t, ldw[OUTW]);
        bf *da = datt.get((size_t)t * D), *dq = dqkv.get((size_t)t * 3 * D);
        product(plain(dy, D), s.out.backward, t, D, D, [&](int i, int j, F v) { store(da + (long)i * D + j, v); });
        attention_backward(s, da, dq, seqs, NEOX);
        column_sums(dq, t, 3 * D, ldw[QKVB]);
        weight_gradient(dq, 3 * D, s.h1.p, D, t, ldw[QKVW]);
        product(plain(dq, 3 * D), s.qkv.backward, t, D, 3 * D, to_hidden);
        s.ln1.backward(x0, lw[LN1G], dh, dx, ldw[LN1G], ldw[LN1B], t);
    }
    for (int i = 0; i < t; i++) for (int j = 0; j < D; j += 16) {
        float* e = dw[0] + ids[i] * D + j;
        store(e, load(e) + load(dx + (long)i * D + j));
        if (!NEOX) { e = dw[1] + (long)(i % CTX) * D + j; store(e, load(e) + load(dx + (long)i * D + j)); }
    }
    return loss;
}

// The sum of the losses of the targets that are not negative. With `dw`, adds `weight` times the gradient of that sum.
extern "C" double step(int neox, int vocab, float** w, float** dw, const int64_t* ids, const int64_t* targets, int seqs, int at_once, float weight) {
    configure();
    embed.set(w[0], vocab, D);
    for (int l = 0; l < L; l++) {
        float** lw = w + 4 + l * PER;
        layers[l].qkv.set(lw[QKVW], 3 * D, D); layers[l].out.set(lw[OUTW], D, D);
        layers[l].up.set(lw[UPW], INNER, D); layers[l].down.set(lw[DOWNW], D, INNER);
    }
    double loss = 0;
    for (int s = 0; s < seqs; s += at_once)
        loss += (neox ? micro<true> : micro<false>)(w, dw, vocab, ids + (long)s * CTX, targets + (long)s * CTX, at_once, weight);
    _tile_release();
    return loss;
}

// Muon: x [m][n], m <= n, becomes the nearest semi-orthogonal matrix, roughly: five Newton-Schulz steps.
extern "C" void orthogonalize(float* x, int m, int n) {
    static Buffer<bf> b, r, a, a2;
    configure();
    double norm = 1e-14;
    for (long i = 0; i < (long)m * n; i++) norm += (double)x[i] * x[i];
    for (long i = 0; i < (long)m * n; i++) x[i] *= (float)(1 / sqrt(norm));
    bf *xb = b.get((size_t)m * n), *ab = a.get((size_t)m * m), *yb = a2.get((size_t)m * m);
    for (int it = 0; it < 5; it++) {
        for (long i = 0; i < (long)m * n; i += 16) store(xb + i, load(x + i));
        right_of_columns(r.get((size_t)m * n), xb, n, m, n);
        product(plain(xb, n), r.p, m, m, n, [&](int i, int j, F v) { store(ab + (long)i * m + j, v); });
        right_of_rows(r.p, ab, m, m, m);
        product(plain(ab, m), r.p, m, m, m, [&](int i, int j, F v) { store(yb + (long)i * m + j, all(2.0315f) * v - all(4.7750f) * load(ab + (long)i * m + j)); });
        right_of_rows(r.p, xb, m, n, n);
        product(plain(yb, m), r.p, m, n, m, [&](int i, int j, F v) { float* p = x + (long)i * n + j; store(p, all(3.4445f) * load(p) + v); });
    }
    _tile_release();
}
