//! The local stack: services, stand-ins and the development server.

pub mod upstash;
