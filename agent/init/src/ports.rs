//! Ports on which init listens for a host name that was asked for.

/// Ports that servers of the world listen on and that a containerised server hardly listens on itself.
pub const USUAL: &[u16] = &[
    22, 25, 80, 143, 389, 443, 465, 587, 636, 853, 993, 995, 1433, 1521, 2375, 2376, 3306, 4222, 4317, 4318, 5432,
    5671, 5672, 5984, 6333, 6334, 6379, 6380, 7687, 8086, 8123, 8529, 9092, 9200, 9243, 9418, 11211, 11371, 11434,
    19530, 26257, 27017, 50051,
];

/// Ports that a containerised server may want for itself: while init listens on one of these, a server's bind
/// of the wildcard address to it fails. They wait until the main process serves (or there is none).
pub const CONTESTED: &[u16] = &[3000, 5000, 8000, 8080, 8443, 8888, 9000, 9090];
