/* DP-SGD steps of linear models and multilayer perceptrons, compiled: the same steps as TorchKernel in cohort_kernel.py,
 * which is what runs where this could not be built. No state, no threads, no input or output, and no randomness: what to
 * draw and which noise to add is given. The steps stand in cohort_kernel_steps.h, made here for each instruction set.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "instruction_sets.h"

/* The digest of all files that are compiled: a library that was built from others is not loaded. */
const char *ringfence_source = RINGFENCE_SOURCE;

#define UNROLL _Pragma("GCC unroll 8")
#define PIECE 88 /* rows at once at most; a multiple of ROWS */
#define CHAIN (1 << 13) /* rows summed in float32 times units in the step, at most: the room that trainer.py leaves */
#define ROWS 8 /* the least rows in a piece that are worth summing in float32 */
#define UNDERFLOW 2e-34f /* what squares too small for float32 may add up to, as in layer_gradients.py */
#define COLUMNS 16 /* floats to which widths are padded: one register of AVX-512, two of AVX2 */

/* What one call does; CompiledKernel in cohort_kernel.py has the same members in the same order. */
struct steps {
    int64_t layers;         /* linear layers, the last with one output */
    int64_t parameters;     /* numbers in `weights`, `anchor` and a step's noise */
    int64_t steps;          /* how many to take */
    int64_t noise_stride;   /* numbers from one step's noise to the next's */
    const int64_t *widths;  /* (layers + 1): features, outputs of each layer */
    const int64_t *ends;    /* (steps): where in `rows` each step's rows end */
    const int64_t *rows;    /* positions of the rows drawn, step after step */
    const int64_t *units;   /* the subject of each of `rows`, equal ones adjacent; NULL where each row is its own */
    const float *features;  /* (records, features) */
    const float *labels;    /* (records), 0 or 1 */
    const float *anchor;    /* where the proximal term pulls to */
    float *weights;         /* the model, in the module's order; changed in place */
    double *noise;          /* (steps, parameters), turned into the noised sums */
    double bound;           /* what each unit's gradient is clipped to */
    double grid;            /* a power of two: noised sums are rounded to its multiples, see snapped() in noise.py */
    double learning_rate;
    double expected_batch;
    double proximal_mu;
};

/* One linear layer: its weights as the loops want them, and what a piece of rows made of it. */
struct layer {
    long inputs, outputs, in_pad, out_pad;
    float *weight;       /* (outputs, in_pad) */
    float *turned;       /* (inputs, out_pad) */
    float *bias;         /* (out_pad) */
    float *in;           /* (PIECE, in_pad) */
    float *out_gradient; /* (PIECE, out_pad) */
};

#define SQUARE 4
typedef float square_row __attribute__((vector_size(SQUARE * sizeof(float))));
typedef int32_t places __attribute__((vector_size(SQUARE * sizeof(int32_t))));
#define SHUFFLE(one, other, ...) __builtin_shuffle(one, other, (places){__VA_ARGS__})

static long padded(long width) { return (width + COLUMNS - 1) / COLUMNS * COLUMNS; }

/* Transpose a square: what is padded is zero, and stays so. */
INLINE void turn(const float *from, long from_row, float *to, long to_row) {
    square_row a[SQUARE];
    UNROLL for (int i = 0; i < SQUARE; i++)
        a[i] = *(const square_row *)(from + i * from_row);
    const square_row b = SHUFFLE(a[0], a[1], 0, 4, 1, 5), c = SHUFFLE(a[2], a[3], 0, 4, 1, 5);
    const square_row d = SHUFFLE(a[0], a[1], 2, 6, 3, 7), e = SHUFFLE(a[2], a[3], 2, 6, 3, 7);
    *(square_row *)to = SHUFFLE(b, c, 0, 1, 4, 5);
    *(square_row *)(to + to_row) = SHUFFLE(b, c, 2, 3, 6, 7);
    *(square_row *)(to + 2 * to_row) = SHUFFLE(d, e, 0, 1, 4, 5);
    *(square_row *)(to + 3 * to_row) = SHUFFLE(d, e, 2, 3, 6, 7);
}

INLINE void load_weights(const struct steps *of, struct layer *layers) {
    const float *from = of->weights;
    for (long l = 0; l < of->layers; l++) {
        struct layer *at = layers + l;
        for (long o = 0; o < at->outputs; o++)
            memcpy(at->weight + o * at->in_pad, from + o * at->inputs, at->inputs * sizeof(float));
        if (l + 1 < of->layers) /* the last one's is not asked for */
            for (long o = 0; o < at->outputs; o += SQUARE)
                for (long i = 0; i < at->inputs; i += SQUARE)
                    turn(at->weight + o * at->in_pad + i, at->in_pad, at->turned + i * at->out_pad + o, at->out_pad);
        from += at->outputs * at->inputs;
        memcpy(at->bias, from, at->outputs * sizeof(float));
        from += at->outputs;
    }
}

/* Add a subject's summed gradient to the step's sum, scaled down to `bound`. */
INLINE void add_clipped(const double *unit, double bound, double *sum, long parameters) {
    double square = 0;
    for (long i = 0; i < parameters; i++)
        square += unit[i] * unit[i];
    const double factor = square <= bound * bound ? 1.0 : bound / sqrt(square);
    for (long i = 0; i < parameters; i++)
        sum[i] += factor * unit[i];
}

INLINE void take_step(const struct steps *of, const double *noised) {
    const double rate = of->learning_rate, share = 1.0 / of->expected_batch, fineness = 1.0 / of->grid;
    for (long i = 0; i < of->parameters; i++) {
        const double snapped = rint(noised[i] * fineness) * of->grid;
        const double pull = of->proximal_mu * ((double)of->weights[i] - of->anchor[i]);
        of->weights[i] -= (float)(rate * ((float)snapped * share + pull));
    }
}

#if defined(__x86_64__)
#define NAME steps_avx512
#define TARGET AVX512
#define LANES 16
#include "cohort_kernel_steps.h"
#define NAME steps_avx2
#define TARGET AVX2
#define LANES 8
#include "cohort_kernel_steps.h"
#endif
#define NAME steps_any
#define TARGET
#define LANES 4
#include "cohort_kernel_steps.h"

/* Take the steps with the widest registers that this processor has, `most_lanes` floats at most. Returns how many steps
 * were taken: all, or none where memory is short. */
int64_t ringfence_take_steps(const struct steps *of, int64_t most_lanes) {
    struct layer *layers = calloc(of->layers, sizeof *layers);
    double *unit = malloc(of->parameters * sizeof *unit);
    long largest = 0, floats = 0;
    for (long l = 0; layers && l < of->layers; l++) {
        struct layer *at = layers + l;
        at->inputs = of->widths[l], at->outputs = of->widths[l + 1];
        at->in_pad = padded(at->inputs), at->out_pad = padded(at->outputs);
        const long size = (at->out_pad + PIECE) * at->in_pad + (at->in_pad + 1 + PIECE) * at->out_pad;
        floats += size;
        largest = largest > size ? largest : size;
    }
    floats += largest; /* one layer's gradient at a time */
    const size_t bytes = ((size_t)floats * sizeof(float) + 63) / 64 * 64;
    float *memory = aligned_alloc(64, bytes);
    if (layers && unit && memory) {
        memset(memory, 0, bytes); /* what is padded stays zero */
        float *next = memory;
        for (long l = 0; l < of->layers; l++) {
            struct layer *at = layers + l;
            at->weight = next, next += at->out_pad * at->in_pad;
            at->turned = next, next += at->in_pad * at->out_pad;
            at->bias = next, next += at->out_pad;
            at->in = next, next += PIECE * at->in_pad;
            at->out_gradient = next, next += PIECE * at->out_pad;
        }
#if defined(__x86_64__)
        const int64_t lanes = widest_lanes(most_lanes);
        if (lanes == 16)
            steps_avx512(of, layers, next, unit);
        else if (lanes == 8)
            steps_avx2(of, layers, next, unit);
        else
#endif
            steps_any(of, layers, next, unit);
    }
    const int64_t taken = layers && unit && memory ? of->steps : 0;
    free(memory);
    free(unit);
    free(layers);
    return taken;
}
