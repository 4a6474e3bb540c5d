// Package attention is the operator as mathematics: its statement (below), the float64 reference that every backend is held
// against (Forward, Backward), and the decode state as a value (State). It imports package tensor alone.
//
// # The operator
//
// Letters, here and everywhere: T tokens of a sequence, Hq query heads, H key/value heads (query head n reads kv head
// n / (Hq/H)), K key dim, V value dim, M slots, W window, c scale (usually K^-1/2), tau gate normaliser (8). Given are queries
// q [T,Hq,K], keys k [T,H,K], values v [T,H,V] and gate logits z [T,H,M]. Everything below is for one kv head and one of its
// query heads.
//
// A gate is a forget factor a for each slot, and its complement the write strength s, computed so that neither underflows:
//
//	log a_t = logsigmoid(z_t) / tau
//	s_t     = 1 - a_t = -expm1(log a_t)
//
// The last W tokens are seen as they are. The token that leaves the window enters M slots, which are all the operator keeps of
// what came earlier: at position t, before reading, token j = t-W (if j >= 0) is blended in with the gate it had when it came
// and with its unrotated key,
//
//	Ks_i <- a_j,i Ks_i + s_j,i k_j       computed as Ks_i += s_j,i (k_j - Ks_i), which keeps the mass in float32
//	Vs_i <- a_j,i Vs_i + s_j,i v_j       Ks [M,K] and Vs [M,V] start at 0
//
// so slots hold tokens 0..t-W and the window t-W+1..t: together every token once. Then one softmax reads both:
//
//	slot logits    l_i = c q_t . Ks_i                        no position
//	window logits  l_u = c rope(q_t) . rope(k_u)             u = max(0, t-W+1) .. t
//	p   = softmax([slots ; window])
//	o_t = sum_i p_i Vs_i + sum_u p_u v_u
//	slot share w_t = sum_i p_i                               how much of this token's attention is long-term memory
//
// The window is the only dial. W = 0 is slots alone (gated slot attention), W >= T full attention, anything between a hybrid;
// M = 0 has no gate and is sliding-window attention, or with W >= T plain softmax attention. Only M = 0 with W = 0 attends to
// nothing, which Config.Check refuses.
//
// # Empty slots
//
// Before position W no token has entered the slots. Under Count an empty slot takes part with logit 0 and value 0, so the M
// slots together add M to the denominator. Under Mask they do not take part, and W >= T is softmax attention exactly. The
// position decides, not the contents: with an initial state the slots live from position W on, whatever they hold.
//
// # Sequences and states
//
// A Call is a packed batch. Every sequence starts from its initial state (empty by default), counts positions from there and
// sees nothing of its neighbours. The state after t tokens is Ks, Vs and the last min(W,t) tokens' k, v and log a (State).
// However a sequence is cut into calls, outputs and states are the same.
//
// # Gradients
//
// With dO given and d_t = dO_t . o_t, walk t downwards with adjoints U [M,K] of Ks and R [M,V] of Vs, which start as the
// gradient of the final state:
//
//	slots   dl_i = p_i (Vs_i . dO_t - d_t)    dq_t += c sum_i dl_i Ks_i    U_i += c dl_i q_t    R_i += p_i dO_t
//	window  dl_u = p_u (v_u . dO_t - d_t)     dv_u += p_u dO_t
//	        d rope(k_u) += c dl_u rope(q_t)   d rope(q_t) += c dl_u rope(k_u)
//	if j = t-W >= 0, with Kp, Vp the slots before the update
//	        da_i  = U_i . (Kp_i - k_j) + R_i . (Vp_i - v_j)
//	        dk_j += sum_i s_j,i U_i           dv_j += sum_i s_j,i R_i
//	        U_i  *= a_j,i                     R_i  *= a_j,i
//	        d(log a_j,i) += da_i a_j,i        dz_j,i = d(log a_j,i) sigmoid(-z_j,i) / tau
//
// A kv head sums over its query heads. The gradient of the initial state is what is left in U and R, and, for a token that came
// with the ring, its dk, dv and d(log a).
package attention
