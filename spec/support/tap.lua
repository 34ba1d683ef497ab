--- A TAP output handler for busted that names each skipped test, not only the reason.

return function()
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()
  local count = 0

  local function out(...)
    io.write(...)
    io.write "\n"
    io.flush()
  end

  local function one_line(text)
    return (tostring(text):gsub("%s*\n%s*", " "):gsub("#", ""))
  end

  local function comment(text)
    out("#   ", (tostring(text):gsub("\n", "\n#   ")))
  end

  local function failed(record)
    out("not ok ", count, " - ", one_line(record.name or "?"))
    local trace = record.trace or record.element.trace
    if trace and trace.short_src then
      comment(("%s:%s"):format(trace.short_src, trace.currentline or "?"))
    end
    comment(record.message or "nil error")
  end

  handler.testEnd = function(element, _, status)
    count = count + 1
    if status == "success" then
      local record = handler.successes[#handler.successes]
      out(("ok %d - %s # %.0f ms"):format(count, one_line(record.name), (element.duration or 0) * 1000 // 1))
    elseif status == "pending" then
      local record = handler.pendings[#handler.pendings]
      out("ok ", count, " - ", one_line(record.name), " # SKIP ", one_line(record.message or ""))
    elseif status == "failure" then
      failed(handler.failures[#handler.failures])
    else
      failed(handler.errors[#handler.errors])
    end
    return nil, true
  end

  -- Errors outside a test: in a setup, in a file, in the ledger.
  handler.error = function(element)
    if element.descriptor ~= "it" then
      count = count + 1
      failed(handler.errors[#handler.errors])
    end
    return nil, true
  end

  handler.suiteEnd = function()
    out("1..", count)
    return nil, true
  end

  busted.subscribe({ "suite", "end" }, handler.suiteEnd)
  busted.subscribe({ "test", "end" }, handler.testEnd, { predicate = handler.cancelOnPending })
  busted.subscribe({ "error" }, handler.error)
  return handler
end
