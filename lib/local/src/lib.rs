//! The local stack: services, stand-ins and the development server.
