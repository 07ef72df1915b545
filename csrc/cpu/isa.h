// The instruction sets that have a room, poorest first: a room may run every kernel of the rooms before it.
#pragma once
#include <string>
#include <vector>

namespace p2p::cpu {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

const char* isa_name(Isa isa);
bool can_run(Isa isa);                 // CPU and operating system
std::vector<Isa> runnable_isas();      // poorest first
// "" = P2P_ISA or else the best. Throws BackendUnavailable for a room that cannot run, std::invalid_argument for a name
// that is no room.
Isa resolve_isa(const std::string& name);
bool is_intel();
std::string cpu_name();
int usable_cpus();                     // CPUs that this process may use (affinity)

}  // namespace p2p::cpu
