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
// CPUs whose time this process may use up, rounded up (control groups of version 2 and 1, its own and those above); 0: no limit.
// groups: /proc/self/cgroup, mount: /sys/fs/cgroup.
int cpu_quota(const std::string& groups, const std::string& mount);
int usable_cpus();                     // CPUs that this process may use: affinity and quota

}  // namespace p2p::cpu
