// fused.py's operator for CPUs as one of PyTorch's own kind: in Python it takes longer than the
// work of a small layer. kernels.cpp computes it.
//
// native.py has it compiled against the PyTorch that is installed.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

namespace {

using at::Tensor;
using Tensors = torch::autograd::variable_list;
using Context = torch::autograd::AutogradContext;
using Rectify = int (*)(const void *x, const float *bias, const float *slope, void *out,
                        long slopes, long numbers, long channels, long period, int learned);
using Backward = int (*)(const void *grad, const void *out, const float *slope, void *grad_x,
                         float *grad_bias, float *grad_slope, long slopes, long numbers,
                         long channels, long period, int learned);

struct Kernels {
    Rectify rectify;
    Backward backward;
} float32, bfloat16;
long vector;  // native.py's

const Kernels &kernels_for(const Tensor &x) {
    return x.scalar_type() == at::kFloat ? float32 : bfloat16;
}

long period(long channels) { return channels * std::max(1L, vector / channels); }

void check(int failed) { TORCH_CHECK(!failed, "no memory is left for a kernel"); }

// Whether a tensor is what it seems: its numbers lie at its address.
bool is_plain(const Tensor &x) {
    constexpr c10::DispatchKeySet others{
        c10::DispatchKey::Python,   c10::DispatchKey::FuncTorchGradWrapper,
        c10::DispatchKey::Negative, c10::DispatchKey::FuncTorchBatched,
        c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor,
        c10::DispatchKey::Functionalize};
    return x.is_cpu() && x.layout() == at::kStrided && !x.key_set().has_any(others);
}

bool is_a_parameter(const Tensor &x, long count) {
    return is_plain(x) && x.scalar_type() == at::kFloat && x.dim() == 1 && x.size(0) == count &&
           x.is_contiguous();
}

// Whether the kernels take these tensors: fused.py's _pick.
bool fits(const Tensor &x, const Tensor &slope, const std::optional<Tensor> &bias = {}) {
    if (!is_plain(x) || (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16))
        return false;
    const auto layout = x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    if ((x.dim() != 2 && x.dim() != 4) || !x.is_contiguous(layout)) return false;
    const long channels = x.size(1);
    return channels > 0 && (is_a_parameter(slope, channels) || is_a_parameter(slope, 1)) &&
           (!bias || is_a_parameter(*bias, channels));
}

Tensor forward(const Tensor &x, const std::optional<Tensor> &bias, const Tensor &slope,
               bool learned) {
    Tensor out = at::empty_like(x);
    const long channels = x.size(1);
    check(kernels_for(x).rectify(x.const_data_ptr(), bias ? bias->const_data_ptr<float>() : nullptr,
                                 slope.const_data_ptr<float>(), out.mutable_data_ptr(),
                                 slope.numel(), x.numel(), channels, period(channels), learned));
    return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, const Tensor &out, const Tensor &slope,
                                            bool learned) {
    if (grad.strides() != out.strides() || !is_plain(grad)) grad = at::empty_like(out).copy_(grad);
    const long channels = out.size(1);
    Tensor grad_x = at::empty_like(out);
    Tensor grad_bias = at::empty({channels}, slope.options());
    Tensor grad_slope = at::empty({channels}, slope.options());
    check(kernels_for(out).backward(
        grad.const_data_ptr(), out.const_data_ptr(), slope.const_data_ptr<float>(),
        grad_x.mutable_data_ptr(), grad_bias.mutable_data_ptr<float>(),
        grad_slope.mutable_data_ptr<float>(), slope.numel(), out.numel(), channels,
        period(channels), learned));
    return {grad_x, grad_bias, grad_slope};
}

// With create_graph, as the kernels have no gradients of their own, and where hooks on saved tensors
// keep them otherwise than the kernels need them.
std::tuple<Tensor, Tensor, Tensor> plain_backward(const Tensor &grad, const Tensor &out,
                                                  const Tensor &slope, bool learned) {
    static const auto plain =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("delving::rectify_backward_plain", "")
            .typed<std::tuple<Tensor, Tensor, Tensor>(const Tensor &, const Tensor &,
                                                      const Tensor &, bool)>();
    return plain.call(grad, out, slope, learned);
}

struct Function : torch::autograd::Function<Function> {
    static Tensor forward(Context *context, const Tensor &x, const std::optional<Tensor> &bias,
                          const Tensor &slope, bool learned) {
        Tensor out = ::forward(x, bias, slope, learned);
        context->save_for_backward({out, slope});
        context->saved_data["biased"] = bias.has_value();
        context->saved_data["learned"] = learned;
        return out;
    }

    static Tensors backward(Context *context, const Tensors &grads) {
        const Tensors saved = context->get_saved_variables();
        const Tensor &grad = grads[0], &slope = saved[1];
        const Tensor out = saved[0].to(grad.scalar_type());  // its own type, whatever hooks made of it
        const bool learned = context->saved_data["learned"].toBool();
        auto [grad_x, grad_bias, grad_slope] =
            !c10::GradMode::is_enabled() && fits(out, slope)
                ? ::backward(grad, out, slope, learned)
                : plain_backward(grad, out, slope, learned);
        if (slope.numel() == 1) grad_slope = grad_slope.sum(0, true);
        return {grad_x, context->saved_data["biased"].toBool() ? grad_bias : Tensor(),
                learned ? grad_slope : Tensor(), Tensor()};
    }
};

std::optional<Tensor> with_gradients(const Tensor &x, const std::optional<Tensor> &bias,
                                     const Tensor &slope, bool learned) {
    if (!fits(x, slope, bias)) return std::nullopt;
    return Function::apply(x, bias, slope, learned);
}

std::optional<Tensor> without(const Tensor &x, const std::optional<Tensor> &bias,
                              const Tensor &slope, bool learned) {
    if (!fits(x, slope, bias)) return std::nullopt;
    return forward(x, bias, slope, learned);
}

}  // namespace

// Registers `delving_cpu::rectify`, which returns None for tensors that the kernels do not take;
// one that is registered already, by a library loaded earlier, stays. Takes kernels.cpp's functions.
extern "C" void enlist(Rectify rectify_float32, Backward backward_float32, Rectify rectify_bfloat16,
                       Backward backward_bfloat16, long numbers_in_a_vector) {
    static std::unique_ptr<torch::Library> library;
    float32 = {rectify_float32, backward_float32};
    bfloat16 = {rectify_bfloat16, backward_bfloat16};
    vector = numbers_in_a_vector;
    try {
        library = std::make_unique<torch::Library>(torch::Library::DEF, "delving_cpu",
                                                   std::nullopt, __FILE__, __LINE__);
        library->def("rectify(Tensor x, Tensor? bias, Tensor slope, bool learned) -> Tensor?");
        library->impl("rectify", torch::dispatch(c10::DispatchKey::Autograd, with_gradients));
        library->impl("rectify", torch::dispatch(c10::DispatchKey::CPU, without));
    } catch (const c10::Error &) {  // the name is taken
    }
}
