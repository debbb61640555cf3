//! The layer's place in the graph: its parents, what it keeps for the backward pass, and where the gradients go.

use super::dora::Lengths;
use super::{Factors, Layer, Linear, Saved};
use crate::ops::flex::{Flex, FlexTensor, dims, flex, matrix, primitive, slice, tensor};
use crate::ops::{AttentionPlan, Block};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use std::sync::Arc;

#[derive(Debug)]
struct State {
    layer: Layer,
    input: FlexTensor,
    /// None with checkpointing.
    saved: Option<Saved>,
}

#[derive(Debug)]
struct LayerBackward;

/// The input, and of seven linears A, B and DoRA's magnitudes.
const PARENTS: usize = 22;

impl Backward<Flex, PARENTS> for LayerBackward {
    type State = Arc<State>;

    fn backward(self, ops: Prepared<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let input = slice(&state.input);
        let layer = &state.layer;
        let again = state.saved.is_none().then(|| layer.forward(input).1);
        let Some(saved) = state.saved.as_ref().or(again.as_ref()) else { unreachable!("saved, or computed again") };
        let (d_input, factors) = layer.backward(input, saved, slice(&dy));
        let mut parents = ops.parents.into_iter();
        if let Some(Some(node)) = parents.next() {
            grads.register::<Flex>(node.id, flex(d_input, dims(&state.input)));
        }
        for (made, linear) in factors.into_iter().zip(&layer.linears) {
            let nodes: [_; 3] = std::array::from_fn(|_| parents.next().flatten());
            let Some(lora) = &linear.lora else { continue };
            let lengths = linear.lengths.as_ref().map(|lengths| dims(&lengths.magnitude));
            let shapes = [Some(dims(&lora.a)), Some(dims(&lora.b)), lengths];
            for ((grad, shape), node) in [made.a, made.b, made.magnitude].into_iter().zip(shapes).zip(nodes) {
                if let (Some(grad), Some(shape), Some(node)) = (grad, shape, node) {
                    grads.register::<Flex>(node.id, flex(grad, shape));
                }
            }
        }
    }
}

/// The op; `norms` are those of the rows of `W₀ + s·B·A`, for the linears that have DoRA's magnitudes.
pub fn layer(x: Tensor<2>, block: &Block, norms: [Option<Arc<Vec<f32>>>; 7], plan: &AttentionPlan) -> Tensor<2> {
    let x = primitive(x);
    let input = x.primitive().to_contiguous();
    let [n, _] = dims(&input);
    let mut nodes = vec![x.node()];
    let mut linears = Vec::with_capacity(7);
    for ((frozen, lora), norms) in block.linears.iter().zip(&block.lora).zip(norms) {
        let factors = lora.as_ref().map(|lora| {
            let (a, b) = (primitive(lora.a.clone()), primitive(lora.b.clone()));
            nodes.extend([a.node(), b.node()]);
            let (a, b) = (a.primitive().to_contiguous(), b.primitive().to_contiguous());
            Factors { r: dims(&a)[0], a, b, scaling: lora.scaling }
        });
        if factors.is_none() {
            // The input's node in place of a factor that is not there; no gradient is registered for it.
            nodes.extend([x.node(), x.node()]);
        }
        let dora = lora.as_ref().and_then(|lora| lora.dora.as_ref());
        let lengths = dora.zip(norms).map(|(dora, norms)| {
            let magnitude = primitive(dora.magnitude.clone());
            nodes.push(magnitude.node());
            Lengths::new(magnitude.primitive().to_contiguous(), norms)
        });
        if lengths.is_none() {
            nodes.push(x.node());
        }
        let weight = matrix(frozen).clone();
        let bias = frozen.bias.clone();
        linears.push(Linear { weight, n_out: frozen.n_out, n_in: frozen.n_in, bias, lora: factors, lengths });
    }
    let layer = Layer {
        compute: linears[0].weight.compute(),
        linears,
        input_norm: block.input_norm.clone(),
        head_norms: block.head_norms.map(|norms| norms.map(Arc::clone)),
        post_norm: block.post_norm.clone(),
        eps: block.eps,
        plan: plan.clone(),
        n,
    };
    let (out, saved) = layer.forward(slice(&input));
    let out = flex(out, dims(&input));
    let Ok(nodes) = <[_; PARENTS]>::try_from(nodes) else {
        unreachable!("the input, and three for each of seven linears")
    };
    tensor(match LayerBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let saved = (!block.checkpoint).then_some(saved);
            p.finish(Arc::new(State { layer, input, saved }), out)
        }
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
