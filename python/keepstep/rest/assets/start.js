// Relative, so that it works below a path too; validatorUrl null, so that no other host is asked.
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
